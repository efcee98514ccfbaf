"""Photographs of people with captions and segment maps, as FFHQ-FastComposer stores them.

python -m fd_jax.data.ffhq check FOLDER --page page.png
python -m fd_jax.data.ffhq build FOLDER DATASET
"""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fd_jax.data.ffhq.record import DataError, Segment, read_info

Split = Literal["train", "test", "all"]
ID_FILES = {"train": "image_ids_train.txt", "test": "image_ids_test.txt", "all": "image_ids.txt"}
SUFFIXES = (".jpg", ".json", ".npy")
MAX_BYTES = 2**29  # of a file

_READERS = 16  # threads, which wait for small files


class Record(NamedTuple):
    """An item as it is stored."""

    index: int  # its number in the source
    id: str
    image: bytes  # JPEG
    segment_map: bytes  # npy or PNG
    caption: str
    segments: tuple[Segment, ...]


@runtime_checkable
class Part(Protocol):
    """The items of one folder or dataset."""

    ids: list[str]

    def read(self, number: int) -> Record: ...

    def labels(self) -> list[list[str]]: ...


class Source:
    """Items of one or more roots, in order. Small to pickle.

    Attributes:
        ids: The id of each item, behind its root where there are several.
        plain_ids: The ids of each root as they are stored there.
    """

    def __init__(self, roots: Sequence[Path], parts: Sequence[Part]):
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.ids) for part in parts)])
        self.plain_ids = [part.ids for part in parts]
        self.ids = [
            f"{root}/{name}" if len(roots) > 1 else name
            for root, part in zip(roots, parts, strict=True)
            for name in part.ids
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Reads an item. Raises DataError if a file of it is missing or is no JSON."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._parts[part].read(int(index - self._starts[part]))
        return record._replace(index=int(index), id=self.ids[index])

    def num_subjects(self, object_types: Collection[str]) -> Int[np.ndarray, " n"]:
        """Returns how many segments of these types each item has.

        Of a folder it reads all JSON files, of a dataset the index.
        """
        labels = [labels for part in self._parts for labels in part.labels()]
        return np.array([sum(label in object_types for label in item) for item in labels], int)


class Folder:
    """The items of a folder, read when asked for."""

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
        return read_item(self.root, self.ids[number])

    def labels(self) -> list[list[str]]:
        def read(name: str) -> list[str]:
            content = read_file(item_path(self.root, name, ".json"))
            _, segments = read_info(content, f"{self.root}/{name}")
            return [segment.coco_label for segment in segments]

        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, self.ids))


def open_source(roots: Sequence[Path], split: Split) -> Source:
    """Returns the items of folders or TFDS datasets, one root after another.

    Args:
        roots: Folders in the layout of FFHQ-FastComposer, or what `build` made of them.
        split: Whose ids are read: those of image_ids_train.txt, image_ids_test.txt or
            image_ids.txt.

    Raises:
        DataError: There is no root, a root is neither, files of items are missing, or there are
            no items at all.
    """
    if not roots:
        raise DataError("no root is given, expected a folder of photographs or a TFDS dataset")
    parts = [_open_part(Path(root), split) for root in roots]
    source = Source(roots, parts)
    if not source.ids:
        where = " and ".join(str(root) for root in roots)
        raise DataError(f"there is no item in split {split!r} of {where}, expected at least one")
    return source


def _open_part(root: Path, split: Split) -> Part:
    if not root.is_dir():
        raise DataError(f"root {root} does not exist or is not a folder")
    if any((root / name).is_file() for name in ID_FILES.values()):
        return Folder(root, split)
    from fd_jax.data.ffhq import tfds_dataset

    folder = tfds_dataset.find(root)
    if folder is None:
        raise DataError(
            f"root {root} holds no dataset: expected {' or '.join(ID_FILES.values())}, or a TFDS "
            "dataset (dataset_info.json)"
        )
    return tfds_dataset.Dataset(folder, split)


def has_split(root: Path, split: Split) -> bool:
    """Whether a root has items in a split. Raises DataError if it is no root."""
    if any((root / name).is_file() for name in ID_FILES.values()):
        return (root / ID_FILES[split]).is_file() and bool(read_ids(root, split))
    return bool(_open_part(root, split).ids)


def read_ids(root: Path, split: Split) -> list[str]:
    """Returns the ids of a split in the order of their file; blank lines do not count.

    Raises:
        DataError: The file is missing or is no text, or a line is no file name.
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
    """Returns where a file of an item lies."""
    return root / name[:5] / f"{name}{suffix}"


def read_item(root: Path, name: str) -> Record:
    """Reads the files of an item. Raises DataError if one is missing, or its JSON is damaged."""
    image, info, segment_map = (read_file(item_path(root, name, suffix)) for suffix in SUFFIXES)
    caption, segments = read_info(info, f"{root}/{name}")
    return Record(0, name, image, segment_map, caption, segments)


def absent_files(root: Path, ids: Sequence[str]) -> dict[str, list[Path]]:
    """Returns the files that items lack, by id; items that lack none are left out."""
    folders: dict[str, set[str]] = defaultdict(set)
    for chunk in {name[:5] for name in ids}:
        if (root / chunk).is_dir():
            folders[chunk] = set(os.listdir(root / chunk))
    absent = {}
    for name in ids:
        lacking = [suffix for suffix in SUFFIXES if name + suffix not in folders[name[:5]]]
        if lacking:
            absent[name] = [item_path(root, name, suffix) for suffix in lacking]
    return absent


def read_file(path: Path) -> bytes:
    """Returns the bytes of a file of an item. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise DataError(f"{path} has {size} bytes, expected {MAX_BYTES} at most")
            return file.read()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
