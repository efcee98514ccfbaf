"""Folders of photographs in the layout of FFHQ-FastComposer."""

import itertools
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from fd_jax.data.ffhq.record import DataError, Record, read_info
from fd_jax.files import names_in

Split = Literal["train", "test", "all"]
ID_FILES: dict[Any, str] = {  # by split
    "train": "image_ids_train.txt",
    "test": "image_ids_test.txt",
    "all": "image_ids.txt",
}
SUFFIXES = (".jpg", ".json", ".npy")
MAX_BYTES = 2**29  # largest file that is read

_READERS = 16  # threads; small files are bound by latency


class Folder:
    """Items of one split of a folder, read on demand."""

    def __init__(self, root: Path, split: Split):
        self.root = root
        self.ids = read_ids(root, split)
        if absent := absent_files(root, self.ids):
            name, paths = next(iter(absent.items()))
            raise DataError(
                f"{root / ID_FILES[split]} names {len(absent)} items that are not there, the first "
                f"{name}: {' and '.join(map(str, paths))} missing; expected {', '.join(SUFFIXES)} "
                "of each"
            )

    def read(self, number: int) -> Record:
        """Reads an item. Raises DataError if a file is missing, or its JSON damaged."""
        return read_item(self.root, self.ids[number])

    def labels(self) -> list[list[str]]:
        """Reads the COCO labels of each item's segments, from all JSON files."""

        def read(name: str) -> list[str]:
            content = read_file(item_path(self.root, name, ".json"))
            _, segments = read_info(content, f"{self.root}/{name}")
            return [segment.coco_label for segment in segments]

        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, self.ids))


def is_folder(root: Path) -> bool:
    """Whether a root holds an id file, and is read as a folder of photographs."""
    return any((root / name).is_file() for name in ID_FILES.values())


def all_ids(root: Path) -> dict[str, list[str]]:
    """Reads the ids of each split that a folder has. Raises DataError if it has none."""
    if not root.is_dir():
        raise DataError(f"{root} does not exist or is not a folder")
    lists = {
        split: read_ids(root, split) for split, file in ID_FILES.items() if (root / file).is_file()
    }
    if not any(lists.values()):
        raise DataError(f"{root} names no item, expected ids in {' or '.join(ID_FILES.values())}")
    return lists


def distinct(lists: dict[str, list[str]]) -> list[str]:
    """Returns each id once, in the order in which they first appear."""
    return list(dict.fromkeys(itertools.chain(*lists.values())))


def read_ids(root: Path, split: Split) -> list[str]:
    """Reads the ids of a split, in the order of their file. Blank lines are skipped.

    Raises:
        DataError: The file is missing or no text, or a line is not a plain file name.
    """
    path = root / ID_FILES[split]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist, expected a file with one id a line") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    ids = [line.strip() for line in lines if line.strip()]
    for name in ids:
        if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
            raise DataError(f"{path} has the id {name!r:.80}, expected a plain file name")
    return ids


def item_path(root: Path, name: str, suffix: str) -> Path:
    """Returns the path of an item's file."""
    return root / name[:5] / f"{name}{suffix}"


def read_item(root: Path, name: str) -> Record:
    """Reads the files of an item. Raises DataError if one is missing, or its JSON is damaged."""
    image, info, segment_map = (read_file(item_path(root, name, suffix)) for suffix in SUFFIXES)
    caption, segments = read_info(info, f"{root}/{name}")
    return Record(0, name, image, segment_map, caption, segments)


def absent_files(root: Path, ids: Sequence[str]) -> dict[str, list[Path]]:
    """Returns the missing files of each incomplete item, by id."""
    folders: dict[str, set[str]] = defaultdict(set)
    for chunk in {name[:5] for name in ids}:
        folders[chunk] = names_in(root / chunk)
    absent = {}
    for name in ids:
        lacking = [suffix for suffix in SUFFIXES if name + suffix not in folders[name[:5]]]
        if lacking:
            absent[name] = [item_path(root, name, suffix) for suffix in lacking]
    return absent


def read_file(path: Path) -> bytes:
    """Reads an item's file. Raises DataError if it cannot be read, or is too large."""
    try:
        with path.open("rb") as file:
            if (size := file.seek(0, os.SEEK_END)) > MAX_BYTES:
                raise DataError(f"{path} has {size} bytes, expected {MAX_BYTES} at most")
            file.seek(0)
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
