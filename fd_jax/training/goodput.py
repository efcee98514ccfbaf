"""Where the time of a run goes: its steps, and everything else."""

import contextlib
import time
from collections.abc import Iterator

SPANS: tuple[str, ...] = ("compiling", "saving", "evaluating", "waiting")


class Goodput:
    """Shares of time, of which those of steps are what is left of the others.

    Args:
        restarts: How often the run was resumed.
    """

    def __init__(self, restarts: int):
        self.restarts = restarts
        self._total: dict[str, float] = dict.fromkeys(SPANS, 0.0)
        self._begin = time.perf_counter()
        self._last = self._begin, dict(self._total)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Counts the time of a block, also one that raises, as one of `SPANS`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._total[name] += time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Returns the shares since the last call, by name of the metric."""
        begin, before = self._last
        self._last = time.perf_counter(), dict(self._total)
        spent = {name: self._total[name] - before[name] for name in SPANS}
        return _shares(spent, self._last[0] - begin) | {"restarts": float(self.restarts)}

    def summary(self) -> str:
        """Returns the shares of the whole time, in one line."""
        seconds = time.perf_counter() - self._begin
        shares = _shares(self._total, seconds)
        shown = ", ".join(f"{100 * x:.0f} % {n.removeprefix('time_')}" for n, x in shares.items())
        return f"{seconds:.0f} s: {shown}; resumed {self.restarts} times"


def _shares(spent: dict[str, float], seconds: float) -> dict[str, float]:
    seconds = max(seconds, 1e-9)
    steps = max(0.0, seconds - sum(spent.values()))
    return {f"time_{name}": x / seconds for name, x in {"steps": steps, **spent}.items()}
