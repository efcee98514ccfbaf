"""TFDS datasets of FFHQ-FastComposer, written and read without TensorFlow."""

import contextlib
import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format, message
from PIL import Image
from tqdm import tqdm

from fd_jax.data.ffhq.check import TOLERATED, examine, in_order
from fd_jax.data.ffhq.folder import ID_FILES, Split, absent_files, all_ids, distinct
from fd_jax.data.ffhq.record import DataError, Record, Segment, decode_image, decode_map
from fd_jax.data.ffhq.tfds_metadata import (
    INFO_FILE,
    NAME,
    VERSION,
    check_metadata,
    stored_splits,
)
from fd_jax.files import local_path
from fd_jax.plain_paths import utf8_path

_COLUMNS = ("id", "bbox", "start", "end", "coco_label")  # of a segment

# Exceptions that TFDS and ArrayRecord raise on damaged files.
_DAMAGE = (json_format.Error, message.Error, OSError, ValueError, LookupError, TypeError)
_DAMAGE += (AttributeError, RuntimeError)


class FfhqFastcomposer(tfds.core.GeneratorBasedBuilder):
    """Builder of a folder's items, each stored once: in the split train, else test, else other."""

    VERSION = tfds.core.Version(VERSION)
    # Without a path TFDS does not look for checksums of downloads, for which it lacks a package.
    code_path = None

    def __init__(self, *, root: Path, **options: Any):
        self._root = root
        self._lists = all_ids(root)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features
        segment = {
            "id": np.int32,
            "bbox": features.Tensor(shape=(4,), dtype=np.int32),
            "start": np.int32,
            "end": np.int32,
            "coco_label": features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs of people with captions and segment maps.",
            features=features.FeaturesDict(
                {
                    "id": features.Text(),
                    "image": features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "segment_map": features.Image(
                        shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
                    ),
                    "caption": features.Text(),
                    "segments": features.Sequence(segment),
                }
            ),
            # Keep the order of the ids, so that one index serves ids and items.
            disable_shuffling=True,
            # Metadata that is available without reading images.
            metadata=tfds.core.MetadataDict(image_ids=self._lists, labels={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        progress = tqdm(total=len(distinct(self._lists)), unit="item", desc="Writing")
        return {
            split: self._generate_examples(ids, progress)
            for split, ids in stored_splits(self._lists).items()
        }

    def _generate_examples(self, ids: list[str], progress: tqdm) -> Iterator[tuple[str, dict]]:
        metadata: Any = self.info.metadata  # set in `_info`
        for record in in_order(functools.partial(_checked, self._root), ids):
            metadata["labels"][record.id] = [s.coco_label for s in record.segments]
            content = record._asdict()
            del content["index"]
            content["segments"] = [
                {name: getattr(segment, name) for name in _COLUMNS} for segment in record.segments
            ]
            yield record.id, content
            progress.update()


def build(root: Path, target: Path) -> None:
    """Writes a folder's items as a TFDS dataset: JPEG files unchanged, segment maps as PNG.

    The dataset gets its name once it is complete.

    Args:
        root: Folder in the layout of FFHQ-FastComposer.
        target: Folder without such a dataset; created if it does not exist.

    Raises:
        DataError: There is a dataset already, an id appears twice in one list, or an item cannot
            be trained on.
    """
    root, target = local_path(root), local_path(target)
    if (found := find(target)) is not None:
        raise DataError(f"{found} is a dataset already, expected another folder, or delete it")
    lists = all_ids(root)
    for split, ids in lists.items():
        if len(set(ids)) != len(ids):
            raise DataError(f"{root / ID_FILES[split]} has an id twice, expected each once")
    if absent := absent_files(root, distinct(lists)):
        paths = [str(path) for item in absent.values() for path in item]
        raise DataError(f"{len(paths)} files are missing, the first is {paths[0]}")
    tfds.disable_progress_bar()  # three bars without a total
    builder = FfhqFastcomposer(root=root, data_dir=utf8_path(target), file_format="array_record")
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)  # prints that it downloads
    print(f"wrote {len(distinct(lists))} items to {target / NAME / VERSION}")


def find(root: Path) -> Path | None:
    """Returns the folder of the dataset in `root`, which may be that folder itself.

    Raises:
        DataError: There are several.
    """
    patterns = (INFO_FILE, f"*/{INFO_FILE}", f"{NAME}/*/{INFO_FILE}")
    found = [path.parent for pattern in patterns for path in sorted(root.glob(pattern))]
    # TFDS writes to such a folder, which stays if the process is killed.
    found = [folder for folder in found if ".incomplete" not in folder.name]
    if len(found) > 1:
        raise DataError(f"{root} holds {len(found)} datasets, expected one: name {found[0]} itself")
    return found[0] if found else None


class Dataset:
    """Items of one split of a dataset that `build` wrote, read on demand."""

    def __init__(self, folder: Path, split: Split):
        self._folder = folder
        lists = check_metadata(folder)
        if split not in lists:
            raise DataError(f"{folder} has no split {split!r}, only {', '.join(lists)}")
        stored = stored_splits(lists)
        try:
            info: Any = _open(folder).info
            for path in (path for part in info.splits.values() for path in part.filepaths):
                if not path.exists():
                    raise ValueError(f"{path.name} is missing")
            self._labels = [info.metadata["labels"][name] for name in lists[split]]
        except _DAMAGE as error:
            raise DataError(f"dataset {folder} is damaged: {error}") from error
        self.ids = lists[split]
        places = {
            name: (part, number) for part, ids in stored.items() for number, name in enumerate(ids)
        }
        self._places = [places[name] for name in self.ids]

    @functools.cached_property
    def _sources(self) -> Any:
        check_metadata(self._folder)  # again: a worker process opens the files later
        keep = {key: tfds.decode.SkipDecoding() for key in ("image", "segment_map")}
        return _open(self._folder).as_data_source(decoders=keep)

    def read(self, number: int) -> Record:
        """Reads an item. Raises DataError if it is damaged."""
        split, place = self._places[number]
        try:
            record = _record(self._sources[split][place])
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(
                f"item {self.ids[number]} of {self._folder} cannot be read: {error}"
            ) from error
        if record.id != self.ids[number]:
            raise DataError(
                f"{self._folder}: item {place} of {split} is {record.id}, expected "
                f"{self.ids[number]}"
            )
        return record

    def labels(self) -> list[list[str]]:
        """Returns the COCO labels of each item's segments."""
        return self._labels


def _open(folder: Path) -> tfds.core.DatasetBuilder:
    return tfds.builder_from_directory(utf8_path(folder))


def _record(item: dict[str, Any]) -> Record:
    columns = item["segments"]
    segments = tuple(
        Segment(
            id=int(columns["id"][i]),
            bbox=tuple(columns["bbox"][i].tolist()),
            start=int(columns["start"][i]),
            end=int(columns["end"][i]),
            coco_label=label.decode(),
        )
        for i, label in enumerate(columns["coco_label"])
    )
    name, caption = item["id"].decode(), item["caption"].decode()
    return Record(0, name, item["image"], item["segment_map"], caption, segments)


def _checked(root: Path, name: str) -> Record:
    """Reads an item, and encodes its segment map as PNG."""
    record, problems = examine(root, name)
    for problem in problems:
        if problem.kind not in TOLERATED:
            raise DataError(
                f"{root}: item {name}: {problem.kind}: {problem.text}; fd-data check {root} lists "
                "all such items"
            )
    assert record is not None  # a record without a problem is whole
    height, width, _ = decode_image(record.image, name).shape
    segment_map = decode_map(record.segment_map, name, height, width)
    encoded = io.BytesIO()
    Image.fromarray(segment_map).save(encoded, "PNG")
    return record._replace(segment_map=encoded.getvalue())
