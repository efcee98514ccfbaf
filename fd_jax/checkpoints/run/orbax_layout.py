"""Files of Orbax's checkpoints that are read without Orbax: their names and contents.

Orbax does not document them. tests/checkpoints/run/test_orbax_layout.py compares them with what the
installed version writes, and pyproject.toml pins the range of versions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fd_jax.buckets import BucketPath

# Written last into the folder of a step, once everything else is complete.
COMMIT = "commit_success.txt"
# Item of a step that holds the metrics, if they are kept.
METRICS = "metrics"
_STEP_METADATA = "_CHECKPOINT_METADATA"
_ARRAYS_METADATA = "_METADATA"


def items_of(step: Path) -> set[str]:
    """Returns the names of the items in the folder of a step.

    Reads every file that Orbax reads when it opens the folder.

    Raises:
        OSError, ValueError, LookupError: Files are missing or damaged.
    """
    handlers = json.loads((step / _STEP_METADATA).read_bytes())["item_handlers"]
    if not isinstance(handlers, dict):
        raise ValueError(f"{_STEP_METADATA} does not name the items")
    items = set(handlers)
    (step / COMMIT).read_bytes()
    if METRICS in items:
        json.loads((step / METRICS / METRICS).read_bytes())
    return items


def array_paths(folder: Path) -> Iterator[list[str]]:
    """Yields the path of each array in the folder of an item, as the keys of its levels.

    Raises:
        OSError, ValueError, LookupError: Files are missing or damaged.
    """
    content = json.loads((folder / _ARRAYS_METADATA).read_bytes())
    try:
        entries = content["tree_metadata"].values()
        paths = [[level["key"] for level in entry["key_metadata"]] for entry in entries]
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{_ARRAYS_METADATA} does not name the arrays: {error}") from error
    if not all(isinstance(key, str) for path in paths for key in path):
        raise ValueError(f"{_ARRAYS_METADATA} has keys that are no strings")
    yield from paths


def array_spec(folder: Path, path: list[str]) -> dict[str, Any]:
    """Returns the TensorStore spec of an array in a folder, saved with OCDBT and Zarr 2."""
    base = {"driver": "file", "path": f"{folder}/"}
    if isinstance(folder, BucketPath):
        base = {"driver": "gcs", "bucket": folder.bucket, "path": f"{folder.key}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(path)}/"}
    return {"driver": "zarr", "kvstore": store}
