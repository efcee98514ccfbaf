"""Signals that ask a run to stop, noted so that a checkpoint can be saved first."""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class SignalGuard:
    """Notes SIGINT and SIGTERM while it is entered; the second signal acts at once.

    Outside of the main thread, where Python allows no handlers, nothing is noted.

    Attributes:
        signal: Number of the signal, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "SignalGuard":
        numbers = [signal.SIGINT]
        if jax.process_count() == 1:
            # With several processes JAX listens to SIGTERM, and tells all of them.
            numbers.append(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, self._handlers[number])
            signal.raise_signal(number)
        self.signal = number
