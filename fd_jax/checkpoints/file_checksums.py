"""Checksums of a folder's files, in its `checksums.json`."""

import zlib
from pathlib import Path

from fd_jax.checkpoints.errors import DamagedError, file_errors
from fd_jax.files import read_json, write_json

CHECKSUMS_FILE = "checksums.json"
_BLOCK = 2**20  # bytes that are read at a time


def write_checksums(folder: Path) -> None:
    """Writes the CRC-32 of every file below a folder. Raises CheckpointError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    write_json(
        folder / CHECKSUMS_FILE,
        {path.relative_to(folder).as_posix(): _checksum(path) for path in files},
    )


def check_files(folder: Path, pattern: str) -> None:
    """Checks files of a folder that has checksums; those that match a pattern.

    Raises:
        DamagedError: A file is missing or is not the one that was written. The message names it.
        CheckpointError: The checksums cannot be read.
    """
    if not (folder / CHECKSUMS_FILE).exists():  # bundles of version 0.1 have none
        return
    for name, expected in read_json(folder / CHECKSUMS_FILE).items():
        if Path(name).match(pattern) and (found := _checksum(folder / name)) != expected:
            raise DamagedError(
                f"{folder / name} has changed since it was written: its checksum is {found}, "
                f"expected {expected!r:.80}"
            )


def _checksum(path: Path) -> int:
    number = 0
    with file_errors(f"{path}: cannot read the file"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            number = zlib.crc32(block, number)
    return number
