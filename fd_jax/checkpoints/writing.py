"""Dtypes that exports and bundles are written in, and parameters to write."""

import os

import jax
import ml_dtypes
import numpy as np

from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.torch.names import flatten, unflatten
from fd_jax.errors import CheckpointError
from fd_jax.types import Params

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def named_dtype(name: str) -> np.dtype:
    """Returns the dtype of a key of `DTYPES`. Raises CheckpointError."""
    if name not in DTYPES:
        raise CheckpointError(f"dtype is {name!r}, expected one of {tuple(DTYPES)}")
    return DTYPES[name]


def read_float32(
    run: str | os.PathLike, *, ema: bool = True, step: int | None = None
) -> dict[str, Params]:
    """Reads all parameters of a run, by part, onto one device. Options as of `read_params`."""
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placement = Placement(np.float32, lambda path, shape: where)
    return read_params(run, placement=placement, ema=ema, step=step)


def cast(params: Params, dtype: np.dtype, part: str) -> Params:
    """Returns the parameters of a part of a model in another dtype.

    Raises:
        CheckpointError: A value is not finite in it.
    """
    leaves = {}
    for path, leaf in flatten(params).items():
        with np.errstate(over="ignore"):
            leaves[path] = np.asarray(leaf).astype(dtype)
        if not np.isfinite(leaves[path]).all():
            name = "/".join(map(str, (part, *path)))
            raise CheckpointError(f"{name} has values that are not finite in {dtype}")
    return unflatten(leaves)
