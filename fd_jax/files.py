"""Files and folders on disk or in a bucket: paths, checks, JSON, and atomic writes."""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fd_jax.buckets import BucketPath, as_bucket
from fd_jax.errors import CheckpointError, InputError, OutputError

# Schemes of common file systems that are not local. `Path` makes gs:/bucket of gs://bucket.
_SCHEMES = ("abfs", "abfss", "adl", "az", "dbfs", "file", "ftp", "gcs", "gs", "hdfs", "hf", "http")
_SCHEMES += ("https", "oci", "r2", "s3", "s3a", "scp", "sftp", "ssh", "tpu", "wasb", "wasbs")


def to_path(path: str | os.PathLike) -> Path:
    """Returns a path on this machine's disks, or in a bucket where it starts with `gs://`.

    Raises:
        InputError: The path is another URL, which would become a local folder; or a bucket's, and
            the package that reads it is not installed.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path)
    if re.match("gs:/", text):
        return as_bucket(Path(text))
    return local_path(text)


def local_path(path: str | os.PathLike) -> Path:
    """Returns a path on this machine's disks.

    Raises:
        InputError: The path is a URL such as `gs://bucket/run`, which would become a local folder.
    """
    text = os.fspath(path)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(.*)", text, re.DOTALL)
    if found is not None:
        scheme, slashes, rest = found.groups()
        # A `Path` has lost the second slash: then it is a local one where the folder exists.
        is_local = len(slashes) == 1 and scheme.lower() not in _SCHEMES
        if not (is_local and os.path.lexists(f"{scheme}:")):
            raise InputError(
                f"{scheme}://{rest} is a URL, expected a path on a disk of this machine: buckets "
                "and servers have to be mounted first, where docs/storage.md does not say otherwise"
            )
    return Path(text)


def check_folder(folder: str | os.PathLike) -> None:
    """Creates a folder if need be, and tries to write to it. Raises OutputError."""
    folder = to_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / _temporary_name()
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write to the output folder {folder}: {problem}") from error


def names_in(folder: Path) -> set[str]:
    """Returns the names of what a folder holds, also those of broken links; none without it."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def path_exists(path: Path) -> bool:
    """Whether a name is taken, be it by a broken link."""
    return path.exists() if isinstance(path, BucketPath) else os.path.lexists(path)


def is_regular(path: Path) -> bool:
    """Whether a path, which may be no name that the disk knows, is a file."""
    return path.is_file() if isinstance(path, BucketPath) else os.path.isfile(path)


def check_new(paths: Sequence[Path]) -> None:
    """Raises OutputError if a file exists already."""
    held = {folder: names_in(folder) for folder in {path.parent for path in paths}}
    if existing := [str(path) for path in paths if path.name in held[path.parent]]:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise OutputError(
            f"{', '.join(existing[:3])}{more} exist already, expected new names "
            "(replace them with --overwrite)"
        )


def check_replaceable(
    folder: Path, written: Collection[str], *, overwrite: bool, kept: Collection[str] = ()
) -> None:
    """Checks that `atomic_folder` may replace a folder.

    Args:
        folder: The folder, which may not exist.
        written: Names of the entries that may be replaced.
        overwrite: Whether they may be replaced.
        kept: Names of the files that `atomic_folder` keeps.

    Raises:
        OutputError: The folder cannot be read, or it holds something else.
    """
    try:
        held = set(os.listdir(folder)) if os.path.lexists(folder) else set()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read: {error}") from error
    held -= set(kept)
    if held and not overwrite:
        raise OutputError(f"{folder} is not empty, expected a new folder, or --overwrite")
    if unknown := sorted(held - set(written)):
        raise OutputError(f"{folder} holds {unknown}, which are never written: it stays as it is")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[Path]:
    """Yields a new file's temporary path; renames it to `path` when the block ends.

    Other processes see the whole file or none, also after a crash. If the block raises, nothing is
    left. The file gets the mode that the umask gives. One in a bucket is made on this machine, and
    uploaded when the block ends.

    Args:
        path: The file, in a folder that exists.
        overwrite: Whether to replace an existing file.

    Raises:
        FileExistsError: The file exists, and `overwrite` is false.
        OSError: The file cannot be written.
    """
    path = to_path(path)
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, "file")
            temporary.touch()
            yield temporary
            path.upload(temporary, overwrite=overwrite)
        return
    temporary = path.with_name(_temporary_name())
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)
        if overwrite:
            os.replace(temporary, path)
        else:
            _link_or_claim(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_name() -> str:
    # Short, since the file's own name may be as long as names can be.
    return f".{secrets.token_hex(8)}.part"


def _link_or_claim(source: Path, path: Path) -> None:
    """Gives a file its name; raises FileExistsError if the name is taken."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        # Without hard links, as in mounted buckets: claim the name by an empty file first.
        path.open("xb").close()
        try:
            os.replace(source, path)
        except OSError:
            path.unlink()
            raise


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, kept: Collection[str] = ()) -> Iterator[Path]:
    """Yields a new folder's temporary path; renames it to `path` when the block ends.

    If the block raises, `path` is as it was. Folders above are created.

    Args:
        path: The folder. One that exists is replaced.
        kept: Names of files that are copied from the folder that is replaced.

    Raises:
        OSError: The folder cannot be written.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary_name())
    new, old = temporary / "new", temporary / "old"
    new.mkdir(parents=True)
    try:
        yield new
        for name in kept:
            if (path / name).is_file():
                shutil.copy2(path / name, new / name)
        if os.path.lexists(path):
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(to_path(path).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist, expected a config") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, and creates its folder. Raises CheckpointError."""
    path = to_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the file: {error}") from error
