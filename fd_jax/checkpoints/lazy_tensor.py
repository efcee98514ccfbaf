"""A tensor on disk, and the error of all that is wrong with files of tensors."""

import contextlib
import dataclasses
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
import safetensors

from fd_jax.errors import InputError

# What damaged files make `zipfile` (RuntimeError: encrypted), `pickletools` (DeprecationWarning: an
# escape sequence, where warnings are errors), `json` and safetensors raise, and `_unpickle`
# (LookupError: nothing on the stack or in the memo).
_FILE_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error),
    *(DeprecationWarning, zipfile.BadZipFile, safetensors.SafetensorError),
)


class CheckpointError(InputError):
    """A checkpoint file is missing, damaged, or not what it should be."""


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


@contextlib.contextmanager
def file_errors(problem: str) -> Iterator[None]:
    """Turns what reading and writing files raises into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FILE_ERRORS as error:
        # The text of these alone says nothing: a key, or none at all.
        found = repr(error) if isinstance(error, LookupError | EOFError) else error
        raise CheckpointError(f"{problem}: {found}") from error
