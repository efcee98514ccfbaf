"""Parameters of networks: by path, and initialized to train from scratch."""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float32

from fd_jax.types import Params

Flat = dict[str, Any]  # leaves by path, such as unet/conv_in/kernel

# Layers that end a residual branch of the UNet, or the UNet itself: initialized to zero, so that it
# starts as the identity (arXiv:2105.05233).
_ZERO = ("conv2/kernel", "proj_out/kernel", "unet/conv_out/kernel")


def flat(params: Params) -> Flat:
    """Returns the leaves of nested parameters by path."""
    leaves = traverse_util.flatten_dict(params)
    return {"/".join(map(str, path)): leaf for path, leaf in leaves.items()}


def nested(leaves: Mapping[str, Any]) -> Params:
    """The inverse of `flat`. Levels that are numbers are positions in lists of modules."""
    paths = {
        tuple(int(level) if level.isdecimal() else level for level in path.split("/")): leaf
        for path, leaf in leaves.items()
    }
    return traverse_util.unflatten_dict(paths)


def cast(leaves: Mapping[str, Array], dtype: DTypeLike) -> Flat:
    """Returns matrices and convolutions in `dtype`; norms and biases stay as they are."""
    return {path: leaf.astype(dtype) if leaf.ndim > 1 else leaf for path, leaf in leaves.items()}


def initial(path: str, shape: tuple[int, ...], seed: int) -> Float32[np.ndarray, "*shape"]:
    """Returns a parameter to train from scratch; it follows from path, shape and seed.

    Kernels are normal with the inverse of their inputs as variance, embeddings normal with a
    standard deviation of 0.02, norms one and biases zero.
    """
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "bias" or (path.startswith("unet/") and path.endswith(_ZERO)):
        return np.zeros(shape, np.float32)
    if leaf == "scale":
        return np.ones(shape, np.float32)
    # On the host: hundreds of draws in one jitted function would take minutes to compile.
    rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
    deviation = np.prod(shape[:-1]) ** -0.5 if leaf == "kernel" else 0.02
    return np.float32(deviation) * rng.standard_normal(shape, np.float32)
