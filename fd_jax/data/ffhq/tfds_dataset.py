"""FFHQ-FastComposer as a dataset of TFDS: written and read without TensorFlow."""

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

from fd_jax.data.ffhq.check import TOLERATED, all_ids, distinct, examine, in_order
from fd_jax.data.ffhq.folder import ID_FILES, Record, Split, absent_files
from fd_jax.data.ffhq.record import DataError, Segment, decode_image, decode_map

NAME = "ffhq_fastcomposer"
_INFO_FILE = "dataset_info.json"

# What TFDS and ArrayRecord raise on damaged files.
_DAMAGE = (json_format.Error, message.Error, OSError, ValueError, LookupError, TypeError)
_DAMAGE += (AttributeError, RuntimeError)


class FfhqFastcomposer(tfds.core.GeneratorBasedBuilder):
    """Writes the items of a folder. Each is stored once: in train, else test, else other."""

    VERSION = tfds.core.Version("1.0.0")
    # Beside it TFDS would look for checksums of downloads, with a package that it does not require.
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
            # The order of the ids is that of the items, so that one index serves both.
            disable_shuffling=True,
            # What can be asked of items without reading their images.
            metadata=tfds.core.MetadataDict(image_ids=self._lists, labels={}),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        progress = tqdm(total=len(distinct(self._lists)), unit="item", desc="Writing")
        return {
            split: self._generate_examples(ids, progress)
            for split, ids in stored_splits(self._lists).items()
        }

    def _generate_examples(self, ids: list[str], progress: tqdm) -> Iterator[tuple[str, dict]]:
        for record in in_order(functools.partial(_checked, self._root), ids):
            self.info.metadata["labels"][record.id] = [s.coco_label for s in record.segments]
            content = record._asdict()
            del content["index"]
            segments = [segment._asdict() for segment in record.segments]
            for segment in segments:
                del segment["face"]  # training reads none
            content["segments"] = segments
            yield record.id, content
            progress.update()


def build(root: Path, target: Path) -> None:
    """Writes a folder's items as a TFDS dataset: JPEG files as they are, segment maps as PNG.

    The dataset appears under its name once it is complete.

    Args:
        root: A folder in the layout of FFHQ-FastComposer.
        target: A folder without such a dataset; made if need be.

    Raises:
        DataError: There is a dataset already, an id appears twice in one list, or an item cannot
            be learnt from.
    """
    if (found := find(target)) is not None:
        raise DataError(f"{found} is a dataset already, expected another folder, or delete it")
    lists = all_ids(root)
    for split, ids in lists.items():
        if len(set(ids)) != len(ids):
            raise DataError(f"{root / ID_FILES[split]} has an id twice, expected each once")
    if absent := absent_files(root, distinct(lists)):
        paths = [str(path) for item in absent.values() for path in item]
        raise DataError(f"{len(paths)} files are missing, the first is {paths[0]}")
    tfds.disable_progress_bar()  # of which it has three, none with an end
    builder = FfhqFastcomposer(root=root, data_dir=target, file_format="array_record")
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)  # it says that it downloads
    print(f"wrote {len(distinct(lists))} items to {builder.data_path}")


def find(root: Path) -> Path | None:
    """Returns the folder of the dataset in `root`, which may be that folder itself.

    Raises:
        DataError: There are several.
    """
    patterns = (_INFO_FILE, f"*/{_INFO_FILE}", f"{NAME}/*/{_INFO_FILE}")
    found = sorted(path.parent for pattern in patterns for path in root.glob(pattern))
    if len(found) > 1:
        raise DataError(f"{root} holds {len(found)} datasets, expected one: name {found[0]} itself")
    return found[0] if found else None


class Dataset:
    """The items of a dataset that `build` wrote."""

    def __init__(self, folder: Path, split: Split):
        self._folder = folder
        try:
            info = tfds.builder_from_directory(folder).info
            if info.name != NAME:
                raise DataError(
                    f"{folder} is the dataset {info.name}, expected {NAME}, written by python -m "
                    "fd_jax.data.ffhq build"
                )
            lists = dict(info.metadata["image_ids"])
            stored = stored_splits(lists)
            if {name: info.splits[name].num_examples for name in info.splits} != {
                name: len(ids) for name, ids in stored.items()
            }:
                raise ValueError("its metadata are those of other items")
            for path in (path for part in info.splits.values() for path in part.filepaths):
                if not path.exists():
                    raise ValueError(f"{path.name} is missing")
            labels = {name: info.metadata["labels"][name] for name in lists.get(split, ())}
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(f"dataset {folder} is damaged: {error}") from error
        if split not in lists:
            raise DataError(f"{folder} has no split {split!r}, only {', '.join(lists)}")
        self.ids = lists[split]
        self._labels = [labels[name] for name in self.ids]
        places = {
            name: (part, number) for part, ids in stored.items() for number, name in enumerate(ids)
        }
        self._places = [places[name] for name in self.ids]

    @functools.cached_property
    def _sources(self) -> dict[str, Any]:
        keep = {key: tfds.decode.SkipDecoding() for key in ("image", "segment_map")}
        return tfds.builder_from_directory(self._folder).as_data_source(decoders=keep)

    def read(self, number: int) -> Record:
        split, place = self._places[number]
        try:
            item = self._sources[split][place]
        except _DAMAGE as error:
            raise DataError(
                f"item {self.ids[number]} of {self._folder} cannot be read: {error}"
            ) from error
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
        if (name := item["id"].decode()) != self.ids[number]:
            raise DataError(
                f"{self._folder}: item {place} of {split} is {name}, expected {self.ids[number]}"
            )
        return Record(
            0, name, item["image"], item["segment_map"], item["caption"].decode(), segments
        )

    def labels(self) -> list[list[str]]:
        return self._labels


def stored_splits(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns which ids lie in which split of the dataset, in order, each in one; none is empty."""
    placed: set[str] = set()
    splits = {}
    for name, split in (("train", "train"), ("test", "test"), ("other", "all")):
        ids = [i for i in lists.get(split, []) if i not in placed]
        placed.update(ids)
        if ids:
            splits[name] = ids
    return splits


def _checked(root: Path, name: str) -> Record:
    """The item with its segment map as PNG."""
    record, problems = examine(root, name)
    for problem in problems:
        if problem.kind not in TOLERATED:
            raise DataError(
                f"{root}: item {name}: {problem.kind}: {problem.text}; python -m "
                f"fd_jax.data.ffhq check {root} lists all such items"
            )
    height, width, _ = decode_image(record.image, name).shape
    segment_map = decode_map(record.segment_map, name, height, width)
    encoded = io.BytesIO()
    Image.fromarray(segment_map).save(encoded, "PNG")
    return record._replace(segment_map=encoded.getvalue())
