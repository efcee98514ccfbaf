"""Functions of arrays without parameters: embeddings, activations, resizing, rematerialization."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fd_jax.errors import InputError

Remat = Literal["none", "dots", "blocks"]


def time_embedding(t: Int[Array, " b"], dim: int) -> Float[Array, "b {dim}"]:
    """Cosines, then sines, of timesteps `t` at `dim / 2` frequencies from 1 down to 1e-4.

    Not quite to 1e-4: Stable Diffusion divides by dim / 2, where Eq. 5 of arXiv:1706.03762 would
    reach its end.
    """
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(dim // 2) / (dim // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """CLIP's activation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Bilinear interpolation with half-pixel centres, antialiased where it shrinks."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def remat(function: Callable[..., Any], kind: Remat) -> Callable[..., Any]:
    """Returns the function, differentiated with less memory for more time.

    Args:
        function: A block of a network.
        kind: `none` keeps what the way back needs; `dots` keeps the products of matrices and
            computes the rest again; `blocks` keeps what goes into the block alone.

    Raises:
        InputError: The kind is unknown.
    """
    if kind not in get_args(Remat):
        raise InputError(f"remat is {kind!r}, expected one of {get_args(Remat)}")
    if kind == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if kind == "dots" else None
    return jax.checkpoint(function, policy=policy)


def num_params(tree: object) -> int:
    """How many numbers the arrays of `tree`, or their shapes, hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def as_dtype(name: DTypeLike) -> jnp.dtype:
    """The dtype of computation that `name` stands for. Raises InputError."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
        raise InputError(f"dtype is {name!r}, expected 'float32' or 'bfloat16'")
    return dtype
