"""Where arrays live: the mesh, how batches are laid over it, and one table for parameters."""

import dataclasses
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from fd_jax.config import Config
from fd_jax.errors import InputError

DATA_AXES = ("data", "fsdp")  # both divide the batch; parameters are divided along `fsdp` alone

# Which axes of a parameter may be divided, the best first, by the end of its path: that of its
# outputs, or of its inputs where it reads what others divided. The first pattern found counts. A
# parameter shares its path with its EMA and its moments, and so the rule.
PARTITION_RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"_embedding/embedding$", (0, 1)),
    (r"(to_out|proj_out|out_proj|fc2|linear_2|conv_out|visual_projection)/kernel$", (-2, -1)),
    (r"kernel$", (-1, -2)),
    (r"", ()),  # the rest is small: norms, biases, counters
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Config):
    """How devices share the work."""

    fsdp: int = 1
    """Over how many devices parameters, moments and averages are divided. Examples are divided
    over all devices."""

    def __post_init__(self):
        super().__post_init__()
        self.require("fsdp", 1)


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """Returns a mesh over `devices`, by default all of all processes.

    Args:
        devices: Devices, a multiple of `fsdp` of them.
        fsdp: Over how many devices parameters are divided. The rest is data parallel.

    Raises:
        InputError: The devices cannot be divided so.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise InputError("there are no devices, expected at least one")
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"fsdp is {fsdp}, expected a divisor of {len(devices)}, the devices")
    # Axes are Auto: `jax.make_mesh` would make Explicit ones, which refuse sharded convolutions.
    grid = np.array(devices).reshape(-1, fsdp)
    return Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """The first axis is divided over all devices."""
    return NamedSharding(mesh, P(DATA_AXES))


def on_mesh(mesh: Mesh) -> AbstractContextManager[None]:
    """Says which devices a function is traced for, to what depends on them: `ops.attention`.

    To be entered inside of the function that is compiled. Whatever the host has, the program may be
    for other devices.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Moves host arrays onto the mesh. Every process passes the same, whole arrays."""

    def put_leaf(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put_leaf, tree)


def partition_spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Returns how the table divides an array over `fsdp` devices; whole if no axis is a multiple.

    Args:
        path: Levels joined by slashes.
        shape: Of the array.
        fsdp: Length of the mesh's axis.
    """
    axes = next(axes for pattern, axes in PARTITION_RULES if re.search(pattern, path))
    for axis in axes:
        if fsdp > 1 and shape[axis] % fsdp == 0:
            spec = [None] * len(shape)
            spec[axis] = "fsdp"
            return P(*spec)
    return P()


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Maps arrays, or their shapes, to where the table has them. Keys of dicts are paths."""

    def leaf_sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree.map_with_path(leaf_sharding, tree)


def targets(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns shapes with the shardings that the table gives them, to read a checkpoint by."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        *(tree, shardings(tree, mesh)),
    )


def whole_batches(count: int, batch_size: int, mesh: Mesh) -> np.ndarray:
    """Returns the indices of `count` rows in batches of one size, [batches, rows].

    The batch size is rounded up to a multiple of the mesh's devices, and the last row is repeated
    until the last batch is whole, so that one jitted function serves all batches.
    """
    size = -(-batch_size // mesh.size) * mesh.size
    return np.arange(-(-count // size) * size).clip(max=count - 1).reshape(-1, size)


def fetch(array: jax.Array) -> np.ndarray:
    """Returns the whole array, which may be divided over processes, on the host of each."""
    if array.is_fully_addressable:
        return np.asarray(array)
    # All processes call this, and get the same.
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
