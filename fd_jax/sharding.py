"""Device mesh, shardings of batches, and one table that shards every parameter."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int, PyTree

from fd_jax.config import Config, Range
from fd_jax.errors import InputError

DATA_AXES = ("data", "fsdp")  # the batch is sharded over both, parameters over `fsdp` alone

# Axes of a parameter that may be sharded, preferred first, by path suffix; the first match wins.
# The output axis is preferred, or the input axis for layers that consume a sharded activation. EMA
# parameters and Adam's moments share the path of their parameter, and so its rule.
PARTITION_RULES: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"_embedding/embedding$", (0, 1)),
    (r"(to_out|proj_out|out_proj|fc2|linear_2|conv_out|visual_projection)/kernel$", (-2, -1)),
    (r"kernel$", (-1, -2)),
    (r"", ()),  # the rest is small: norms, biases, counters
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Config):
    """Shape of the device mesh."""

    fsdp: Annotated[int, Range(1)] = 1
    """Number of devices over which parameters, optimizer state and EMA are sharded. The batch is
    sharded over all devices."""


def make_mesh(devices: Sequence[jax.Device] | None = None, *, fsdp: int = 1) -> Mesh:
    """Creates the device mesh, with axes `data` and `fsdp`.

    TPUs of several slices are connected by a slower network than those of one: each group of `fsdp`
    devices is within a slice, and only gradients go between them.

    Args:
        devices: Devices of the mesh, a multiple of `fsdp`; by default those of all processes.
        fsdp: Number of devices over which parameters are sharded. The rest is data parallel.

    Raises:
        InputError: The number of devices, or of those in a slice, is not a multiple of `fsdp`.
    """
    devices = list(jax.devices() if devices is None else devices)
    if not devices:
        raise InputError("there are no devices, expected at least one")
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"fsdp is {fsdp}, expected a divisor of {len(devices)}, the devices")
    slices = {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}
    if len(slices) > 1:
        grid = _grid_of_slices(devices, len(slices), fsdp)
    else:
        grid = np.array(devices).reshape(-1, fsdp)
    # Axes are Auto: `jax.make_mesh` would make Explicit ones, which refuse sharded convolutions.
    return Mesh(grid, DATA_AXES, axis_types=(AxisType.Auto,) * 2)


def _grid_of_slices(devices: list[Any], num_slices: int, fsdp: int) -> np.ndarray:
    """Returns the devices of several slices, a row for each group over which parameters go."""
    in_slice, rest = divmod(len(devices), num_slices)
    if rest or any(
        count != in_slice for count in Counter(device.slice_index for device in devices).values()
    ):
        raise InputError(
            f"{len(devices)} devices are of {num_slices} slices, expected as many of each"
        )
    if in_slice % fsdp:
        fitting = [size for size in range(1, in_slice + 1) if in_slice % size == 0]
        raise InputError(
            f"fsdp is {fsdp}, which would cross the {num_slices} slices of {in_slice} devices; "
            f"expected one of {fitting}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (in_slice // fsdp, fsdp),
        (num_slices, 1),
        devices,
        # A group may be part of a row and several of them, such as 8 of 4 x 4 chips.
        allow_split_physical_axes=True,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over all devices."""
    return NamedSharding(mesh, P(DATA_AXES))


def on_mesh(mesh: Mesh) -> AbstractContextManager[None]:
    """Tells device-dependent ops (`ops.attention`) the mesh that a function is traced for.

    Enter it inside the jitted function. Ahead-of-time compilation may target other devices than
    those of the host.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def to_mesh(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Copies host arrays to the devices. Every process passes the same, whole arrays."""

    def leaf_to_mesh(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(leaf_to_mesh, tree)


def partition_spec(path: str, shape: tuple[int, ...], fsdp: int) -> P:
    """Looks an array up in PARTITION_RULES.

    Args:
        path: Path of the array in its tree, joined by slashes.
        shape: Shape of the array.
        fsdp: Length of the mesh axis `fsdp`.

    Returns:
        The preferred axis that is a multiple of `fsdp`, sharded; replicated if there is none.
    """
    axes = next(axes for pattern, axes in PARTITION_RULES if re.search(pattern, path))
    for axis in axes:
        if fsdp > 1 and shape[axis] % fsdp == 0:
            spec: list[str | None] = [None] * len(shape)
            spec[axis] = "fsdp"
            return P(*spec)
    return P()


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Maps a tree of arrays, or of their shapes, to the shardings of PARTITION_RULES."""

    def leaf_sharding(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(name, leaf.shape, mesh.shape["fsdp"]))

    return jax.tree.map_with_path(leaf_sharding, tree)


def abstract_with_shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Adds the shardings of PARTITION_RULES to abstract arrays, as restoring a checkpoint needs."""

    def leaf_with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(leaf_with_sharding, tree, shardings(tree, mesh))


def to_host(array: jax.Array) -> np.ndarray:
    """Copies a whole array to the host; every process gets all of an array sharded over them.

    All processes call this together.
    """
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def whole_batches(count: int, batch_size: int, mesh: Mesh) -> Int[np.ndarray, "batches b"]:
    """Divides examples 0..count-1 into batches of one size, so that one compilation serves all.

    Args:
        count: Number of examples.
        batch_size: Examples per batch, rounded up to a multiple of the mesh's devices.
        mesh: Device mesh.

    Returns:
        The index of each example of each batch. The last example is repeated to fill a batch.
    """
    batch_size = -(-batch_size // mesh.size) * mesh.size
    num_batches = -(-count // batch_size)
    return np.arange(num_batches * batch_size).clip(max=count - 1).reshape(-1, batch_size)
