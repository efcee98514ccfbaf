"""Draws of a step are the same whatever global settings of JAX surround it."""

import contextlib

import jax
import numpy as np
import pytest

from fd_jax.numerics import pinned, seed_key
from tests.helpers.training import make_task, random_batch, to_jax

# Settings that change draws, dtypes or products where they are not pinned.
SETTINGS = {
    "64 bits": ("jax_enable_x64", True),
    "other random numbers": ("jax_default_prng_impl", "rbg"),
    "random numbers of older versions": ("jax_threefry_partitionable", False),
    "short products": ("jax_default_matmul_precision", "bfloat16"),
    "strict promotion": ("jax_numpy_dtype_promotion", "strict"),
    "another seed": ("jax_random_seed_offset", 7),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    """Changes a global setting of JAX while a test runs."""
    name, value = SETTINGS[request.param]
    with changed({name: value}):
        yield name


@contextlib.contextmanager
def changed(settings):
    """Changes global settings of JAX until the block ends."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def draw():
    with pinned("float32"):
        task, batch = make_task(), to_jax(random_batch(3))
        draws = jax.jit(task.draw)(seed_key(2**32 - 1), batch)
        return jax.tree.map(np.asarray, draws)


DRAWS = draw()


def test_draws_are_the_same_under_all_settings(setting):
    found = draw()
    for name, array in DRAWS._asdict().items():
        other = getattr(found, name)
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array, err_msg=f"{name} under {setting}")


def test_the_key_of_a_seed_is_that_of_jax():
    for seed in (0, 42, 2**32 - 1):
        expected = jax.random.key(np.uint32(seed), impl="threefry2x32")
        assert (jax.random.key_data(seed_key(seed)) == jax.random.key_data(expected)).all()
