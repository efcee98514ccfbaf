"""Sources of training items: one or more roots, each a folder or a TFDS dataset."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from fd_jax.buckets import BucketPath, fetch
from fd_jax.data.ffhq.folder import ID_FILES, Folder, Split, is_folder, read_ids
from fd_jax.data.ffhq.record import DataError, Record
from fd_jax.data.ffhq.tfds_metadata import INFO_FILE
from fd_jax.files import to_path


@runtime_checkable
class Root(Protocol):
    """Items of one split of a folder or a TFDS dataset."""

    ids: list[str]

    def read(self, number: int) -> Record: ...

    def labels(self) -> list[list[str]]: ...


class Source:
    """Items of one or more roots, in order. Small to pickle.

    Attributes:
        ids: Id of each item, prefixed with its root if there are several.
        ids_by_root: Ids of each root, without prefix.
    """

    def __init__(self, paths: Sequence[Path], roots: Sequence[Root]):
        self._roots = roots
        self._starts = np.cumsum([0, *(len(root.ids) for root in roots)])
        self.ids_by_root = [root.ids for root in roots]
        self.ids = [
            f"{path}/{name}" if len(paths) > 1 else name
            for path, root in zip(paths, roots, strict=True)
            for name in root.ids
        ]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Record:
        """Reads an item. Raises DataError if it cannot be read."""
        root = int(np.searchsorted(self._starts, index, side="right")) - 1
        record = self._roots[root].read(int(index - self._starts[root]))
        return record._replace(index=int(index), id=self.ids[index])

    def num_subjects(self, object_types: Collection[str]) -> Int[np.ndarray, " n"]:
        """Counts the segments with these COCO labels in each item.

        Reads all JSON files of a folder, but only the metadata of a dataset.
        """
        labels = [labels for root in self._roots for labels in root.labels()]
        return np.array([sum(label in object_types for label in item) for item in labels], int)


def open_source(roots: Sequence[Path], split: Split) -> Source:
    """Opens folders or TFDS datasets, joined in the order of `roots`.

    Args:
        roots: Folders in the layout of FFHQ-FastComposer, or datasets that `fd-data build` wrote.
        split: List of ids to read: image_ids_train.txt, image_ids_test.txt or image_ids.txt.

    Raises:
        DataError: There is no root, a root is neither folder nor dataset, files are missing, or
            there are no items at all.
    """
    if not roots:
        raise DataError("no root is given, expected a folder of photographs or a TFDS dataset")
    source = Source(roots, [_open_root(Path(root), split) for root in roots])
    if not source.ids:
        where = " and ".join(str(root) for root in roots)
        raise DataError(f"there is no item in split {split!r} of {where}, expected at least one")
    return source


def _open_root(root: Path, split: Split) -> Root:
    root = to_path(root)
    if not root.is_dir():
        raise DataError(f"root {root} does not exist or is not a folder")
    if is_folder(root):
        return Folder(root, split)
    from fd_jax.data.ffhq import tfds_dataset  # TFDS takes a second to import

    if isinstance(root, BucketPath) and any(name.endswith(INFO_FILE) for name in root.files()):
        root = fetch(root)  # ArrayRecord reads from disks
    folder = tfds_dataset.find(root)
    if folder is None:
        raise DataError(
            f"root {root} holds no dataset: expected {' or '.join(ID_FILES.values())}, or a TFDS "
            "dataset (dataset_info.json)"
        )
    return tfds_dataset.Dataset(folder, split)


def has_split(root: Path, split: Split) -> bool:
    """Whether a root has items in a split. Raises DataError if it cannot be opened."""
    if is_folder(root):
        return (root / ID_FILES[split]).is_file() and bool(read_ids(root, split))
    return bool(_open_root(root, split).ids)
