"""Small functions of arrays: embeddings, activations, resizing, rematerialization."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fd_jax.errors import InputError

Remat = Literal["none", "dots", "blocks"]


def time_embedding(t: Int[Array, " b"], dim: int) -> Float[Array, "b {dim}"]:
    """Embeds timesteps as cosines, then sines, at `dim / 2` frequencies from 1 down to 1e-4.

    As in Stable Diffusion the last frequency is a little higher than 1e-4: exponents are divided by
    dim / 2, not dim / 2 - 1.
    """
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(dim // 2) / (dim // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Applies CLIP's activation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Resizes images bilinearly with half-pixel centres, antialiased where it shrinks them."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def remat(function: Callable[..., Any], kind: Remat) -> Callable[..., Any]:
    """Wraps a function so that its backward pass takes less memory and more time.

    Args:
        function: A block of a network.
        kind: Activations that are rematerialized: `none`; with `dots` all but the results of
            matrix products; with `blocks` all but the inputs of the block.

    Raises:
        InputError: `kind` is none of these.
    """
    if kind not in get_args(Remat):
        raise InputError(f"remat is {kind!r}, expected one of {get_args(Remat)}")
    if kind == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if kind == "dots" else None
    return jax.checkpoint(function, policy=policy)


def num_params(tree: object) -> int:
    """Counts the elements of a tree's arrays, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def as_dtype(name: DTypeLike) -> jnp.dtype:
    """Converts a name to a dtype of computation. Raises InputError for other dtypes."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype is None or dtype not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
        raise InputError(f"dtype is {name!r}, expected 'float32' or 'bfloat16'")
    return dtype
