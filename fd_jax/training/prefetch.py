"""Batches on the devices, loaded and sent ahead of the steps that use them."""

import queue
import threading
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fd_jax import sharding
from fd_jax.data.examples import Example
from fd_jax.data.loader import Loader
from fd_jax.training.objective import Batch

_AHEAD = 2  # batches on the devices that no step has asked for yet


class Fed(NamedTuple):
    """A batch on the devices, and which of the data's items its rows on this process are."""

    batch: Batch
    index: np.ndarray


def place(examples: Example, mesh: Mesh) -> Batch:
    """Sends this process's share of a batch to its devices.

    Row j of process p of n is row j * n + p of the batch, as the loader deals them out. Draws
    follow from that, so that they do not depend on how many processes there are.
    """
    rows = np.arange(len(examples.index)) * jax.process_count() + jax.process_index()
    where = sharding.batched(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(where, array),
        Batch(examples, rows.astype(np.int32)),
    )


class DevicePrefetcher:
    """Iterates over the batches of a loader, which a thread of its own asks.

    Attributes:
        waited: Seconds that steps had to wait for data so far.
    """

    def __init__(self, loader: Loader, mesh: Mesh):
        self.waited = 0.0
        self._loader, self._mesh = loader, mesh
        self._queue: queue.Queue[Fed | BaseException] = queue.Queue(_AHEAD)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._load, name="feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Fed:
        """Returns the next batch. Raises what loading it raised."""
        begin = time.perf_counter()
        fed = self._queue.get()
        self.waited += time.perf_counter() - begin
        if isinstance(fed, BaseException):
            raise fed
        return fed

    def close(self) -> None:
        """Ends the thread and the loader."""
        self._is_closed.set()
        while self._thread.is_alive():
            if not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)
        self._loader.close()

    def _load(self) -> None:
        try:
            for examples in self._loader:
                self._put(Fed(place(examples, self._mesh), np.array(examples.index)))
                if self._is_closed.is_set():
                    return
        except BaseException as error:  # handed over to the thread that asks for batches
            self._put(error)

    def _put(self, item: Fed | BaseException) -> None:
        while not self._is_closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
