"""Finds the photographs of a folder, and the captions beside them."""

import csv
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fd_jax.data.photographs import IMAGE_SUFFIXES
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.errors import InputError

METADATA = "metadata.jsonl", "metadata.csv"
_TEXT_COLUMNS = "caption", "text", "prompt"
_MAX_CAPTION = 2000  # letters
_MAX_BYTES = 2**20  # of a caption's file


class Found(NamedTuple):
    """The files of a folder, as paths relative to it, in order."""

    photographs: list[Path]
    left_out: dict[Path, LeftOut]  # files that are no photographs


def find_photographs(root: Path) -> Found:
    """Walks through a folder and its subfolders, links to folders included, each once.

    Raises:
        InputError: It is no folder, a folder cannot be read, or there is no photograph.
    """
    if not root.is_dir():
        raise InputError(f"{root} does not exist or is not a folder, expected one of photographs")
    photographs: list[Path] = []
    left_out: dict[Path, LeftOut] = {}
    for path in _walk(root):
        suffix = path.suffix.lower()
        if path.name.startswith("."):
            left_out[path] = LeftOut("hidden file", "its name begins with a dot")
        elif suffix in IMAGE_SUFFIXES:
            photographs.append(path)
        elif path.name not in METADATA and suffix != ".txt":
            detail = (
                f"its name ends in {suffix or 'no suffix'}, expected {', '.join(IMAGE_SUFFIXES)}"
            )
            left_out[path] = LeftOut("no photograph", detail)
    if not photographs:
        raise InputError(
            f"{root} holds no photograph, expected names that end in one of "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return Found(photographs, left_out)


def _walk(root: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise InputError(f"folder {error.filename} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=fail, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            yield Path(folder, name).relative_to(root)


def find_copies(
    root: Path, photographs: Sequence[Path], captioned: Collection[Path]
) -> dict[Path, LeftOut]:
    """Returns the files whose bytes are those of another one.

    Args:
        root: The folder of photographs.
        photographs: Paths relative to it.
        captioned: Photographs with a caption. The first of them among several copies counts as
            the original.
    """
    with_caption = set(captioned)
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in sorted(photographs, key=lambda path: path not in with_caption):
        if (root / path).is_file():
            by_size[(root / path).stat().st_size].append(path)
    copies: dict[Path, LeftOut] = {}
    for size, paths in by_size.items():
        originals: dict[bytes, Path] = {}
        for path in paths if size and len(paths) > 1 else ():
            try:
                with (root / path).open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").digest()
            except OSError:
                continue  # said when it is read as a photograph
            if (original := originals.setdefault(digest, path)) != path:
                copies[path] = LeftOut("duplicate", f"the same file as {original}")
    return copies


def read_captions(
    root: Path, photographs: Iterable[Path], default: str | None
) -> dict[Path, str | LeftOut]:
    """Returns the caption of each photograph that has one, or why it cannot be used.

    A photograph's own file comes first (NAME.txt beside it), then the nearest metadata.jsonl or
    metadata.csv of its folder or one above, in the layout of Hugging Face's image folders, then
    the default.

    Args:
        root: The folder of photographs.
        photographs: Paths relative to it.
        default: The caption of those that have none.

    Raises:
        InputError: A metadata file cannot be read.
    """
    tables: dict[Path, Mapping[Path, Any]] = {}
    captions: dict[Path, str | LeftOut] = {}
    for path in photographs:
        try:
            caption = _own_caption(root / path)
            for folder in path.parents if caption is None else ():
                if folder not in tables:
                    tables[folder] = _metadata(root, folder)
                if path in tables[folder]:
                    caption = tables[folder][path]
                    break
            caption = default if caption is None else caption
            if caption is not None:
                captions[path] = clean(caption)
        except LeftOut as problem:
            captions[path] = problem
    return captions


def clean(caption: Any) -> str:
    """Returns a caption on one line. Raises LeftOut if it is no text, or empty, or endless."""
    if not isinstance(caption, str) or any("\ud800" <= letter <= "\udfff" for letter in caption):
        raise LeftOut("bad caption", f"{caption!r:.80} is no text")
    caption = " ".join(caption.split())
    if not caption:
        raise LeftOut("no caption", "its caption is empty")
    if len(caption) > _MAX_CAPTION:
        raise LeftOut("bad caption", f"{len(caption)} letters, expected {_MAX_CAPTION} at most")
    if "<|image|>" in caption.lower():
        raise LeftOut("bad caption", f"{caption!r:.200} holds the subject marker <|image|>")
    return caption


def _own_caption(photograph: Path) -> str | None:
    for path in (photograph.with_suffix(".txt"), Path(f"{photograph}.txt")):
        if path.is_file():
            try:
                if path.stat().st_size > _MAX_BYTES:
                    raise LeftOut("bad caption", f"{path.name} is larger than {_MAX_BYTES} bytes")
                return path.read_text(encoding="utf-8-sig")
            except (OSError, ValueError) as error:
                raise LeftOut("bad caption", f"{path.name} cannot be read: {error}") from error
    return None


def _metadata(root: Path, folder: Path) -> dict[Path, Any]:
    """The captions that a folder's metadata file gives, by paths relative to the root."""
    files = [root / folder / name for name in METADATA if (root / folder / name).is_file()]
    if not files:
        return {}
    if len(files) > 1:
        raise InputError(f"{root / folder} holds {' and '.join(METADATA)}, expected one of them")
    [path] = files
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    captions = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise InputError(f"{path}: row {number} has no file_name, expected the photograph's")
        column = next((name for name in _TEXT_COLUMNS if name in row), None)
        if column is None:
            raise InputError(
                f"{path}: row {number} has the columns {', '.join(map(str, row))}, expected one of "
                f"{', '.join(_TEXT_COLUMNS)}"
            )
        if row[column] not in (None, ""):
            captions[Path(os.path.normpath(folder / row["file_name"]))] = row[column]
    return captions
