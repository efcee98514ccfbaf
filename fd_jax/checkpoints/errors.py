"""Errors of checkpoints, and the exceptions of readers that become them."""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from fd_jax.errors import CheckpointError

# What damaged files make `zipfile` (RuntimeError: encrypted), `pickletools` (DeprecationWarning: an
# escape sequence, where warnings are errors), `json` and safetensors raise, and `_unpickle`
# (LookupError: nothing on the stack or in the memo).
_FILE_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error),
    *(DeprecationWarning, zipfile.BadZipFile, safetensors.SafetensorError),
)


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


# What TensorStore and json raise where files are missing, truncated or changed.
_DAMAGES = (OSError, ValueError, LookupError)


class DamagedError(CheckpointError):
    """Files of a checkpoint are missing, incomplete or changed."""


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns what reading a damaged checkpoint raises into DamagedError."""
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGES as error:
        reason = " ".join(str(error).split())
        raise DamagedError(f"{path}: {reason[:300]}") from error


def abbreviate(items: list[str], limit: int = 5) -> str:
    """Returns the first items of a list as text, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
