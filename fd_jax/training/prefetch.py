"""Batches on the devices, loaded ahead of the steps that use them."""

import queue
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fd_jax import sharding
from fd_jax.data.examples import Example
from fd_jax.data.loader import Loader
from fd_jax.training.tasks.base import Batch

_AHEAD = 2  # batches on the devices that no step has used yet


class PrefetchedBatch(NamedTuple):
    """A batch on the devices, and the item index of each of its rows on this process."""

    batch: Batch
    index: np.ndarray


def to_batch(examples: Example, mesh: Mesh) -> Batch:
    """Sends this process's share of a batch to its devices.

    Row j of process p of n is row j * n + p of the batch, as the loader distributes them. Draws
    depend on that position, and so not on the number of processes.
    """
    rows: Any = (
        np.arange(len(examples.index), dtype=np.int32) * jax.process_count() + jax.process_index()
    )
    batched = sharding.batched(mesh)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(batched, array),
        Batch(examples, rows),
    )


class DevicePrefetcher:
    """Iterates over a loader's batches, prefetched to the devices by a background thread.

    Attributes:
        waited: Seconds that steps have waited for data so far.
    """

    def __init__(self, loader: Loader, mesh: Mesh):
        self.waited = 0.0
        self._loader = loader
        self._mesh = mesh
        self._queue: queue.Queue[PrefetchedBatch | BaseException] = queue.Queue(_AHEAD)
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._load, name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> PrefetchedBatch:
        """Returns the next batch. Raises the error that loading it raised."""
        begin = time.perf_counter()
        batch = self._queue.get()
        self.waited += time.perf_counter() - begin
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        """Stops the thread and closes the loader."""
        self._is_closed.set()
        while self._thread.is_alive():
            if not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(0.05)
        self._loader.close()

    def _load(self) -> None:
        try:
            for examples in self._loader:
                self._put(PrefetchedBatch(to_batch(examples, self._mesh), np.array(examples.index)))
                if self._is_closed.is_set():
                    return
        except BaseException as error:  # raised again in the thread that takes batches
            self._put(error)

    def _put(self, item: PrefetchedBatch | BaseException) -> None:
        while not self._is_closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
