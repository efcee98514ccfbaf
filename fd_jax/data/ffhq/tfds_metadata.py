"""Checks the metadata of a TFDS dataset before TFDS reads it.

TFDS imports every Python class that features.json names, and so would execute code that lies
beside a dataset. Nothing but the metadata that `fd-data build` writes is accepted.
"""

import json
from pathlib import Path
from typing import Any

from fd_jax.data.ffhq.folder import ID_FILES
from fd_jax.data.ffhq.record import DataError

NAME = "ffhq_fastcomposer"
VERSION = "1.0.0"
INFO_FILE, FEATURES_FILE, METADATA_FILE = "dataset_info.json", "features.json", "metadata.json"

_MODULES = ("fd_jax.data.ffhq.tfds_dataset", "fd_jax.data.ffhq_dataset")  # the latter of 0.1
_SPLITS = ("train", "test", "other")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MAX_BYTES = {INFO_FILE: 2**26, FEATURES_FILE: 2**20, METADATA_FILE: 2**29}

_CLASSES = "tensorflow_datasets.core.features"


def _tensor(*dimensions: int) -> dict[str, Any]:
    shape = {"dimensions": [str(size) for size in dimensions]} if dimensions else {}
    return {
        "pythonClassName": f"{_CLASSES}.tensor_feature.Tensor",
        "tensor": {"dtype": "int32", "encoding": "none", "shape": shape},
    }


def _image(encoding: str, channels: int) -> dict[str, Any]:
    shape = {"dimensions": ["-1", "-1", str(channels)]}
    return {
        "pythonClassName": f"{_CLASSES}.image_feature.Image",
        "image": {"dtype": "uint8", "encodingFormat": encoding, "shape": shape},
    }


def _dict(**features: Any) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_CLASSES}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


_TEXT = {"pythonClassName": f"{_CLASSES}.text_feature.Text", "text": {}}
_SEGMENT = _dict(id=_tensor(), bbox=_tensor(4), start=_tensor(), end=_tensor(), coco_label=_TEXT)

# Content of features.json.
FEATURES = _dict(
    id=_TEXT,
    image=_image("jpeg", 3),
    segment_map=_image("png", 1),
    caption=_TEXT,
    segments={
        "pythonClassName": f"{_CLASSES}.sequence_feature.Sequence",
        "sequence": {"feature": _SEGMENT, "length": "-1"},
    },
)


def check_metadata(folder: Path) -> dict[str, list[str]]:
    """Checks the three metadata files of a dataset.

    Args:
        folder: Folder of dataset_info.json.

    Returns:
        The ids of each list.

    Raises:
        DataError: A file is missing or damaged, or is none that `fd-data build` writes. The
            message names it.
    """
    info = _read(folder / INFO_FILE)
    if isinstance(info, dict) and info.get("name") != NAME:
        raise DataError(
            f"{folder} is the dataset {info.get('name')!r:.80}, expected {NAME}, written by "
            "fd-data build"
        )
    _check_features(folder / FEATURES_FILE)
    metadata = _read(folder / METADATA_FILE)
    problem = _problem_of_metadata(metadata)
    if problem:
        raise _damaged(folder / METADATA_FILE, problem)
    lists = metadata["image_ids"]
    if problem := _problem_of_info(info, stored_splits(lists)):
        raise _damaged(folder / INFO_FILE, problem)
    return lists


def stored_splits(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    """Returns the ids of each split of a dataset, in order; each id is in one split, none empty.

    Args:
        lists: Ids of the lists of a folder.
    """
    placed: set[str] = set()
    splits = {}
    for name, split in zip(_SPLITS, ("train", "test", "all"), strict=True):
        ids = [i for i in lists.get(split, []) if i not in placed]
        placed.update(ids)
        if ids:
            splits[name] = ids
    return splits


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES[path.name] + 1)
        if len(content) > _MAX_BYTES[path.name]:
            raise ValueError(f"it has more than {_MAX_BYTES[path.name]} bytes")
        return json.loads(content.decode(), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise _damaged(path, str(error)) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears more than once")
    return found


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(
        f"dataset {path.parent} is damaged, or not written by fd-data build: {path.name}: {problem}"
    )


def _check_features(path: Path) -> None:
    if difference := _difference(_read(path), FEATURES):
        raise _damaged(path, f"{difference}; nothing of it is imported")


def _difference(found: Any, expected: Any, name: str = "") -> str:
    """Describes the first difference of two JSON values, or returns ""."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = f"{name}.{key!s:.80}" if name else f"{key!s:.80}"
            if key not in expected:
                return f"{inner} is {found[key]!r:.80}, expected no such key"
            if difference := _difference(found.get(key), expected[key], inner):
                return difference
        return ""
    is_equal = type(found) is type(expected) and found == expected
    return "" if is_equal else f"{name or 'its content'} is {found!r:.80}, expected {expected!r}"


def _problem_of_metadata(metadata: Any) -> str:
    if not isinstance(metadata, dict) or set(metadata) != {"image_ids", "labels"}:
        return "expected the keys image_ids and labels"
    lists, labels = metadata["image_ids"], metadata["labels"]
    if not isinstance(lists, dict) or not set(lists) <= set(ID_FILES):
        return f"image_ids is {lists!r:.80}, expected lists of {', '.join(ID_FILES)}"
    if not all(map(_is_texts, lists.values())):
        return "image_ids holds something else than lists of strings"
    if not isinstance(labels, dict) or not all(map(_is_texts, labels.values())):
        return "labels holds something else than lists of strings"
    if any(len(set(ids)) != len(ids) for ids in lists.values()):
        return "image_ids has an id twice in one list"
    if missing := [name for ids in lists.values() for name in ids if name not in labels]:
        return f"labels lacks {missing[0]!r:.80}"
    return ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _problem_of_info(info: Any, stored: dict[str, list[str]]) -> str:
    if not isinstance(info, dict):
        return f"it holds {info!r:.80}, expected an object"
    expected = {
        "description": lambda value: isinstance(value, str),
        "disableShuffling": lambda value: value is True,
        "fileFormat": lambda value: value == "array_record",
        "moduleName": lambda value: value in _MODULES,
        "name": lambda value: value == NAME,
        "splits": lambda value: isinstance(value, list),
        "version": lambda value: value == VERSION,
    }
    if different := set(info) ^ set(expected):
        return f"it has other keys than fd-data build writes: {', '.join(sorted(different)):.80}"
    for key, is_right in expected.items():
        if not is_right(info[key]):
            return f"{key} is {info[key]!r:.80}"
    counts = {}
    for split in info["splits"]:
        count = _num_items(split)
        if count is None:
            return f"a split is {split!r:.200}"
        counts[split["name"]] = count
    there = {name: len(ids) for name, ids in stored.items()}
    if counts != there or len(counts) != len(info["splits"]):
        return f"its splits hold {counts} items, but {METADATA_FILE} names {there}"
    return ""


def _num_items(split: Any) -> int | None:
    """Returns how many items a split has, or None if it is none that TFDS writes here."""
    keys = {"filepathTemplate", "name", "numBytes", "shardLengths"}
    if not isinstance(split, dict) or set(split) != keys:
        return None
    lengths = split["shardLengths"]
    is_right = (
        split["filepathTemplate"] == _TEMPLATE
        and split["name"] in _SPLITS
        and _is_number(split["numBytes"])
        and isinstance(lengths, list)
        and all(_is_number(length) and int(length) > 0 for length in lengths)
    )
    return sum(map(int, lengths)) if is_right else None


def _is_number(value: Any) -> bool:
    """Whether a value is a number as Protocol Buffers write 64 bits to JSON."""
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19
