"""Errors of checkpoints, and the exceptions of readers that become them."""

import contextlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors

from fd_jax.errors import CheckpointError

# Exceptions of `zipfile` (RuntimeError: encrypted), `pickletools` (DeprecationWarning: an escape
# sequence, where warnings are errors), `json`, safetensors and our unpickler (LookupError: nothing
# on the stack or in the memo) on damaged files.
_FILE_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error),
    *(DeprecationWarning, zipfile.BadZipFile, safetensors.SafetensorError),
)


@contextlib.contextmanager
def file_errors(problem: str) -> Iterator[None]:
    """Turns errors of reading and writing files into CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _FILE_ERRORS as error:
        # The text of these says nothing without their type: it is a key, or empty.
        found = repr(error) if isinstance(error, LookupError | EOFError) else error
        raise CheckpointError(f"{problem}: {found}") from error


# Exceptions of TensorStore and json where files are missing, truncated or changed.
_DAMAGES = (OSError, ValueError, LookupError)


class DamagedError(CheckpointError):
    """Files of a checkpoint are missing, incomplete or changed."""


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns errors of reading a damaged checkpoint into DamagedError."""
    try:
        yield
    except CheckpointError:
        raise
    except _DAMAGES as error:
        reason = " ".join(str(error).split())
        if _is_refused(error):
            raise CheckpointError(f"{path} cannot be read: {reason[:300]}") from error
        raise DamagedError(f"{path}: {reason[:300]}") from error


# Codes with which TensorStore's errors start where a bucket cannot be read as it is.
_REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED")


def _is_refused(error: Exception) -> bool:
    """Whether a bucket refused, or was not available: its files may be whole."""
    if isinstance(error, FileNotFoundError):
        return False
    name = getattr(error, "filename", None)
    return str(name).startswith("gs://") or str(error).startswith(_REFUSALS)


def abbreviate(items: list[str], limit: int = 5) -> str:
    """Returns the first items of a list as text, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
