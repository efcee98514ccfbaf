"""Random arrays and modules for tests, drawn by NumPy as that is fast."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from tests.helpers.untrained import random_params


def normal(shape: tuple[int, ...], seed: int = 0, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draws standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


@functools.cache
def split(make: Callable[..., nnx.Module], *args: Any, **options: Any) -> tuple:
    """Returns graph and random parameters, in plain dicts, of a module."""
    module = nnx.eval_shape(lambda: make(*args, rngs=nnx.Rngs(0), **options))
    graphdef, state = nnx.split(module)
    return graphdef, random_params(nnx.to_pure_dict(state), 0, "untrained")


def build(make: Callable[..., nnx.Module], *args: Any, **options: Any) -> nnx.Module:
    """Returns a module with random parameters, which may be written to."""
    graphdef, params = split(make, *args, **options)
    # Not NumPy's: a computation may still be reading those where a test writes to them.
    return nnx.merge(graphdef, jax.tree.map(jnp.array, params))
