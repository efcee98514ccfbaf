"""What became of each photograph, one line as soon as it is known, so that a run can be resumed."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fd_jax.data.prepare.item import ItemConfig, Result, Task, write_whole
from fd_jax.errors import InputError, OutputError

JOURNAL = "prepare.jsonl"


class Entry(NamedTuple):
    """A result, and the fingerprint of all that it was made from."""

    result: Result
    fingerprint: str


class Journal:
    """The entries of a folder, newest last. A line that a crash cut short is ignored.

    Attributes:
        entries: By the name of the photograph.

    Args:
        out: The folder of the training set; made if need be.
        photographs: The folder of photographs.

    Raises:
        InputError: The folder holds something else, or a set made from other photographs.
        OutputError: It cannot be written.
    """

    def __init__(self, out: Path, photographs: Path):
        self._path = out / JOURNAL
        self._head = {"photographs": str(photographs.resolve())}
        self.entries: dict[str, Entry] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                if next(out.iterdir(), None) is not None:
                    raise InputError(f"{out} is not empty, expected a new folder or a prepared one")
                write_whole(self._path, _line(self._head))
            self._read(out)
            self._file = self._path.open("ab")
            self._file.write(b"\n")  # after a line that was cut short
        except OSError as error:
            raise OutputError(f"{out} cannot be written: {error.strerror or error}") from error

    def add(self, entry: Entry) -> None:
        """Appends an entry at once."""
        try:
            self._file.write(_line(_as_json(entry)))
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written: {error.strerror}") from error
        self.entries[entry.result.name] = entry

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replaces the journal by these entries, whole or not at all."""
        self._file.close()
        self.entries = {entry.result.name: entry for entry in entries}
        lines = [_line(self._head), *(_line(_as_json(entry)) for entry in self.entries.values())]
        write_whole(self._path, b"".join(lines))

    def close(self) -> None:
        self._file.close()

    def _read(self, out: Path) -> None:
        lines = []
        for line in self._path.read_bytes().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        if not lines or not isinstance(lines[0], dict) or "photographs" not in lines[0]:
            raise InputError(f"{self._path} is no journal of a prepared folder")
        if lines[0] != self._head:
            raise InputError(
                f"{out} was prepared from {lines[0]['photographs']}, expected another folder for "
                f"the photographs of {self._head['photographs']}"
            )
        for fields in lines[1:]:
            try:
                fingerprint = fields.pop("fingerprint")
                result = Result(**fields | {"notes": tuple(fields["notes"])})
            except (AttributeError, LookupError, TypeError) as error:
                raise InputError(f"{self._path} is damaged: {fields!r:.80}: {error}") from error
            self.entries[result.name] = Entry(result, fingerprint)


def fingerprint(task: Task, config: ItemConfig) -> str:
    """Returns a text that changes with the photograph, its caption, its mask and the options."""
    files = []
    for path in (task.path, task.mask):
        try:
            status = None if path is None else os.stat(path)
            files.append(status and (status.st_size, status.st_mtime_ns))
        except OSError:
            files.append(None)
    made_from: Mapping = {"files": files, "caption": task.caption} | dataclasses.asdict(config)
    return json.dumps(made_from, sort_keys=True)


def _as_json(entry: Entry) -> dict:
    return entry.result._asdict() | {"fingerprint": entry.fingerprint}


def _line(content: Mapping) -> bytes:
    return json.dumps(content).encode() + b"\n"
