"""Paths that libraries understand, for folders whose names they do not."""

import contextlib
import hashlib
import os
import re
import tempfile
from pathlib import Path

from fd_jax.buckets import BucketPath
from fd_jax.errors import CheckpointError

# Orbax globs below a folder without escaping its name, TensorStore takes a backslash for a slash
# and only UTF-8, and both read URLs out of paths with colons.
_UNUSUAL = re.compile(r"[\[\]*?\\:\ud800-\udfff]")
_NO_UTF8 = re.compile("[\ud800-\udfff]")
_BUCKETS = ("gs", "s3", "az", "hf")  # /gs/name is a bucket to Orbax


def plain_path(path: Path) -> Path:
    """Returns a path to the same folder that Orbax and TensorStore can use.

    It leads through a symbolic link in the folder for temporary files, if need be: the same link
    in all processes, since Orbax compares their paths.

    Raises:
        CheckpointError: The link cannot be made.
    """
    if isinstance(path, BucketPath):
        return path
    path = Path(os.path.abspath(path))
    is_bucket = path.parts[1:2] != () and path.parts[1] in _BUCKETS
    return _linked(path, _UNUSUAL, 1 if is_bucket else 0)


def utf8_path(path: Path) -> Path:
    """Returns a path to the same folder that is UTF-8, as ArrayRecord expects.

    Raises:
        CheckpointError: The link that it leads through cannot be made.
    """
    return _linked(Path(os.path.abspath(path)), _NO_UTF8)


def _linked(path: Path, unusual: re.Pattern[str], last: int = 0) -> Path:
    """Replaces the folders up to the last unusual one, or at least to number `last`, by a link."""
    found = [last, *(i for i, name in enumerate(path.parts) if unusual.search(name))]
    end = max(found) + 1
    return path if end == 1 else _link(Path(*path.parts[:end])).joinpath(*path.parts[end:])


def _link(target: Path) -> Path:
    folder = Path(tempfile.gettempdir(), f"fd_jax_links_{os.getuid()}")
    link = folder / hashlib.sha256(os.fsencode(target)).hexdigest()[:32]
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o022:
            raise OSError(f"{folder} can be written by other users")
        if not os.path.lexists(link):
            with contextlib.suppress(FileExistsError):  # made by another process meanwhile
                link.symlink_to(target)
        if os.readlink(link) != str(target):
            raise OSError(f"{link} leads elsewhere")
    except OSError as error:
        raise CheckpointError(
            f"{target}: its name needs a link in {folder}, which cannot be made: {error}"
        ) from error
    return link
