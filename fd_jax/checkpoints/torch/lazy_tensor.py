"""A tensor on disk, read on demand."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor on disk: its name, shape and dtype are known, its data is read on demand."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """Returns the data, maybe as a read-only strided view. Raises CheckpointError."""
        return self._load()
