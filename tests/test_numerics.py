"""Numbers under global settings of JAX, which are pinned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.numerics import pinned, seed_key

# Settings that change draws, dtypes or products.
SETTINGS = {
    "jax_enable_x64": True,
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_numpy_dtype_promotion": "strict",
    "jax_random_seed_offset": 7,
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    """Changes a global setting of JAX while a test runs."""
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, SETTINGS[request.param])
    yield request.param
    jax.config.update(request.param, before)


def draw():
    with pinned("float32"):
        keys = jax.vmap(seed_key)(jnp.array([0, 5, 2**32 - 1], jnp.uint32))
        draw_one = jax.jit(lambda key: jax.random.normal(key, (5,)) * 2 + jnp.arange(5))
        return [np.asarray(draw_one(key)) for key in (*keys, seed_key(5))]


EXPECTED = draw()


def test_draws_are_the_same_under_all_settings(setting):
    for found, expected in zip(draw(), EXPECTED, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected, err_msg=setting)


@pytest.mark.parametrize("seed", [0, 42, 2**31, 2**32 - 1])
def test_the_key_of_a_seed_is_that_of_jax(seed):
    expected = jax.random.key(np.uint32(seed), impl="threefry2x32")
    assert (jax.random.key_data(seed_key(seed)) == jax.random.key_data(expected)).all()
