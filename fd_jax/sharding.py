"""Where arrays live: the mesh, and how batches are laid over it."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from fd_jax.errors import InputError

DATA_AXES = ("data", "fsdp")  # both divide the batch; parameters are divided along `fsdp` alone


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


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Moves host arrays onto the mesh. Every process passes the same, whole arrays."""

    def put_leaf(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    return jax.tree.map(put_leaf, tree)
