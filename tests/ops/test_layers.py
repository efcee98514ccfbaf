"""Functions of arrays without parameters: values, limits, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.errors import InputError
from fd_jax.ops.layers import as_dtype, num_params, quick_gelu, remat, resize, time_embedding
from tests.helpers.modules import normal


def test_time_embedding_begins_with_cosines():
    embedding = time_embedding(jnp.array([0, 3, 999]), 10)

    assert embedding.dtype == jnp.float32
    np.testing.assert_array_equal(embedding[0], [1] * 5 + [0] * 5)
    np.testing.assert_allclose(embedding[1, [0, 5]], [np.cos(3), np.sin(3)], rtol=1e-6)
    np.testing.assert_allclose(embedding[:, :5] ** 2 + embedding[:, 5:] ** 2, 1, rtol=1e-5)


def test_time_embedding_has_geometric_frequencies():
    angles = jnp.atan2(*jnp.split(time_embedding(jnp.array([1]), 8)[0], 2)[::-1])

    np.testing.assert_allclose(angles, [1, 1e-1, 1e-2, 1e-3], rtol=1e-5)


def test_quick_gelu():
    x = jnp.array([1.0, 3.0, 50.0])

    np.testing.assert_allclose(quick_gelu(x) - quick_gelu(-x), x, rtol=1e-6)
    np.testing.assert_allclose(quick_gelu(x)[0], 0.8457958, rtol=1e-6)


def test_resize_to_the_same_size_is_the_identity():
    x = normal((2, 5, 7, 3))

    np.testing.assert_array_equal(resize(x, (5, 7)), x)


@pytest.mark.parametrize("size", [(2, 3), (11, 4), (5, 9)])
def test_resize_preserves_constants(size):
    resized = resize(jnp.full((2, 5, 7, 3), 0.3), size)

    assert resized.shape == (2, *size, 3)
    np.testing.assert_allclose(resized, 0.3, rtol=1e-6)


def test_resize_is_antialiased_where_it_shrinks():
    """One bright pixel of sixteen is not lost, whichever it is."""
    pixels = jnp.eye(16).reshape(16, 16, 1, 1)

    shrunk = resize(pixels, (4, 1))

    assert shrunk.max(axis=(1, 2, 3)).min() > 0.05
    np.testing.assert_allclose(shrunk.sum(axis=0), 1, rtol=1e-6)


def test_resize_has_half_pixel_centres():
    x = jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1)

    np.testing.assert_allclose(resize(x, (1, 4))[0, 0, :, 0], [0, 1, 3, 4])


def test_counts_parameters():
    tree = {"a": np.ones((2, 3)), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.float32), "d": {}}}

    assert num_params(tree) == 11


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_dtypes(name):
    assert as_dtype(name) == jnp.dtype(name)
    assert as_dtype(getattr(jnp, name)) == jnp.dtype(name)


@pytest.mark.parametrize("name", ["float16", "float64", "int32", "bf16", "", "half"])
def test_other_dtypes_are_refused(name):
    message = f"dtype is '{name}', expected 'float32' or 'bfloat16'"
    with pytest.raises(InputError, match=message):
        as_dtype(name)


@pytest.mark.parametrize("kind", ["none", "dots", "blocks"])
def test_rematerialization_changes_no_gradient(kind):
    x, w = normal((3, 4)), normal((4, 4))

    def loss(w, function):
        return jnp.sum(function(x, w) ** 2)

    def block(x, w):
        return quick_gelu(x @ w) @ w

    expected = jax.grad(loss)(w, block)
    np.testing.assert_allclose(jax.grad(loss)(w, remat(block, kind)), expected, rtol=1e-6)


def test_rematerialized_blocks_are_computed_twice():
    def block(x):
        return jnp.sin(jnp.sin(x))

    def num_sines(kind):
        jaxpr = jax.make_jaxpr(jax.grad(lambda x: remat(block, kind)(x).sum()))(jnp.ones(3))
        return str(jaxpr).count(" sin ")

    assert num_sines("none") == 2
    assert num_sines("blocks") > 2
