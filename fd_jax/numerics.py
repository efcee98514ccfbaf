"""Keeps the numbers of jitted functions the same under all global settings of JAX."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Key, UInt32


@contextlib.contextmanager
def pinned(dtype: DTypeLike) -> Iterator[None]:
    """Context manager in which functions are traced, compiled and called with fixed settings.

    Other code of the process may enable 64-bit types, choose another implementation of random
    numbers or another precision of matrix products. Inside, draws are those of threefry2x32,
    numbers have at most 32 bits, and float32 products are computed in float32, which GPU and TPU
    shorten by default.

    Args:
        dtype: Dtype of the computation.
    """
    precision = "float32" if jnp.dtype(dtype) == jnp.float32 else None
    with (
        jax.enable_x64(False),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision(precision),
    ):
        yield


def seed_key(seed: int | UInt32[Array, ""]) -> Key[Array, ""]:
    """Returns the threefry key of a seed in 0..2**32 - 1, independent of JAX's global settings.

    `jax.random.key` would add `jax_random_seed_offset` to the seed.
    """
    low = jnp.asarray(seed, jnp.uint32)
    return jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(low), low]), impl="threefry2x32")
