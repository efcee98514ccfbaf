"""Files of Orbax's checkpoints that are read without Orbax: their names and contents.

Orbax does not document them. tests/checkpoints/run/test_orbax_layout.py compares them with what the
installed version writes, and pyproject.toml pins the range of versions.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    items = set(json.loads((step / _STEP_METADATA).read_bytes())["item_handlers"])
    (step / COMMIT).read_bytes()
    if METRICS in items:
        json.loads((step / METRICS / METRICS).read_bytes())
    return items


def array_paths(folder: Path) -> Iterator[list[str]]:
    """Yields the path of each array in the folder of an item, as the keys of its levels.

    Raises:
        OSError, ValueError, LookupError: Files are missing or damaged.
    """
    for entry in json.loads((folder / _ARRAYS_METADATA).read_bytes())["tree_metadata"].values():
        yield [level["key"] for level in entry["key_metadata"]]


def array_spec(folder: Path, path: list[str]) -> dict[str, Any]:
    """Returns the TensorStore spec of an array in a folder, saved with OCDBT and Zarr 2."""
    base = {"driver": "file", "path": f"{folder}/"}
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(path)}/"}
    return {"driver": "zarr", "kvstore": store}
