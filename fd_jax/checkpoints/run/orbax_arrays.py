"""Arrays by name in a folder, as Orbax writes them: read whole or in part onto any devices."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree

from fd_jax.checkpoints.errors import abbreviate, damage
from fd_jax.checkpoints.run import array_checksums
from fd_jax.checkpoints.run.orbax_layout import array_paths, array_spec
from fd_jax.errors import CheckpointError
from fd_jax.plain_paths import plain_path

# Level above the names: without one Orbax refuses a folder without arrays.
_LEVEL = "arrays"

# How many arrays are read at a time.
_AT_A_TIME = 32


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a pytree by path, its levels joined by slashes."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def handler() -> ocp.PyTreeCheckpointHandler:
    """Returns the handler of arrays, with the file format that `describe` and `read` expect."""
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)


def save_args(arrays: Mapping[str, Array]) -> ocp.args.PyTreeSave:
    """Returns the arguments with which `handler` saves arrays by name."""
    return ocp.args.PyTreeSave({_LEVEL: dict(arrays)})


def describe(folder: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of the arrays in a folder. Raises DamagedError."""
    with damage(folder):
        return {
            name: jax.ShapeDtypeStruct(tuple(array.shape), array.dtype.numpy_dtype)
            for name, array in _open(folder).items()
        }


def names(folder: Path) -> list[str]:
    """Returns the names of the arrays in a folder. Raises DamagedError."""
    with damage(folder):
        return [path[1] for path in _paths(folder)]


def _paths(folder: Path) -> list[list[str]]:
    # A path of one level is that of an empty dict: it says that there are no arrays.
    return [path for path in array_paths(folder) if len(path) > 1]


def _open(folder: Path, *, write: bool = False) -> dict[str, ts.TensorStore]:
    """Returns the arrays in a folder, unread.

    Orbax could read them too. But its errors do not tell a damaged file from others, its tasks go
    on after an error and print pages of messages, and its processes wait for each other, so that
    one that fails blocks the others.
    """
    # One context for all, or each array would read the database's index again.
    context = ts.Context({"cache_pool": {"total_bytes_limit": 2**26}})
    opened = {}
    for path in _paths(folder):
        spec = array_spec(plain_path(folder), path)
        opened[path[1]] = ts.open(spec, open=True, read=True, write=write, context=context)
    return {name: future.result() for name, future in opened.items()}


def read(
    folder: Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    advance: Callable[[int], object] = lambda count: None,
    expected: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Reads arrays, casts them, and shards them as their targets say.

    Args:
        folder: Folder that `describe` accepts.
        targets: Shape, dtype and sharding of the arrays to read.
        advance: Called with 1 after each array.
        expected: Checksums of `array_checksums`; arrays without one are not checked.

    Raises:
        DamagedError: Files are missing, incomplete or changed.
    """
    if not targets:
        return {}
    found = {}
    expected = {} if expected is None else expected
    with damage(folder):
        stored = _open(folder)
        wanted = list(targets)
        for first in range(0, len(wanted), _AT_A_TIME):
            some_names = wanted[first : first + _AT_A_TIME]
            begun = {name: _begin(stored[name], targets[name].sharding) for name in some_names}
            for name, futures in begun.items():
                pieces = {place: future.result() for place, future in futures.items()}
                if name in expected:
                    shape = targets[name].shape
                    array_checksums.check(str(folder), name, shape, pieces, expected[name])
                found[name] = _place(pieces, targets[name])
                advance(1)
    return found


def _begin(
    stored: ts.TensorStore, where: jax.sharding.Sharding
) -> dict[array_checksums.Box, ts.Future]:
    """Starts reading the pieces of an array that this process needs, by place, each once."""
    shape = tuple(stored.shape)
    indices: Any = where.addressable_devices_indices_map(shape).values()
    pieces = {array_checksums.box(index, shape): index for index in indices}
    return {place: stored[index].read() for place, index in pieces.items()}


def _place(pieces: Mapping[array_checksums.Box, np.ndarray], target: jax.ShapeDtypeStruct) -> Array:
    values = {place: np.asarray(piece, target.dtype) for place, piece in pieces.items()}
    box = partial(array_checksums.box, shape=target.shape)
    # JAX's types allow an index of None, which no array has.
    return jax.make_array_from_callback(
        target.shape, target.sharding, lambda at: values[box(cast(Any, at))]
    )


def check_same(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError unless names, shapes and dtypes of arrays are the same."""
    changed = [
        f"{name} is {_described(found[name])}, expected {_described(leaf)}"
        for name, leaf in expected.items()
        if name in found and _described(found[name]) != _described(leaf)
    ]
    problems = {
        "lacks": [name for name in expected if name not in found],
        "has the unknown": [name for name in found if name not in expected],
        "is of another architecture:": changed,
    }
    if message := "; ".join(
        f"{what} {abbreviate(names)}" for what, names in problems.items() if names
    ):
        raise CheckpointError(f"{where} {message}")


def _described(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"


def gather(number: int) -> list[int]:
    """Returns the number that each process gave. All processes call this."""
    if jax.process_count() == 1:
        return [number]
    return multihost_utils.process_allgather(np.int32(number)).ravel().tolist()
