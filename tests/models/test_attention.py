import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.models.attention import Attention, FeedForward, Transformer
from fd_jax.ops.attention import QUERY_BLOCK
from tests.helpers.modules import build, normal


@pytest.fixture
def attention():
    return build(Attention, 6, 10, num_heads=3, kind="plain", dtype=jnp.float32)


@pytest.fixture
def transformer():
    return build(Transformer, 6, 10, num_heads=2, groups=3, kind="chunked", dtype=jnp.float32)


call = jax.jit(lambda module, *arrays: module(*arrays)[0])
call_with_map = jax.jit(lambda module, *arrays: module(*arrays, return_map=True))


def test_the_map_is_what_the_values_are_weighed_with(attention):
    x, context = normal((2, 5, 6)), normal((2, 7, 10), 1)

    y, probs = call_with_map(attention, x, context)

    np.testing.assert_allclose(y, call(attention, x, context), rtol=1e-5, atol=1e-6)
    assert probs.shape == (2, 3, 5, 7)
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
    # Moving the value of one token moves each pixel as far as that token's probability says.
    values = attention.to_v(context).reshape(2, 7, 3, 2)
    expected = jnp.einsum("bhqk,bkhd->bqhd", probs, values).reshape(2, 5, 6)
    np.testing.assert_allclose(y, attention.to_out(expected), rtol=1e-5, atol=1e-6)


def test_the_order_of_the_context_does_not_matter(attention):
    x, context = normal((2, 5, 6)), normal((2, 7, 10), 1)
    order = np.array([3, 0, 6, 1, 5, 2, 4])

    y, probs = call_with_map(attention, x, context)
    y2, probs2 = call_with_map(attention, x, context[:, order])

    np.testing.assert_allclose(y2, y, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probs2, probs[..., order], rtol=1e-4)


def test_equal_tokens_share_the_attention(attention):
    x, context = normal((2, 5, 6)), jnp.repeat(normal((2, 1, 10), 1), 7, axis=1)

    _, probs = call_with_map(attention, x, context)

    np.testing.assert_allclose(probs, 1 / 7, rtol=1e-6)


def test_pixels_are_flattened_row_by_row(transformer):
    """A pixel that differs from the rest is the one whose map differs."""
    x = jnp.zeros((1, 3, 4, 6)).at[0, 1, 2, 0].set(5.0)

    _, probs = call_with_map(transformer, x, normal((1, 7, 10), 1))

    assert probs.shape == (1, 2, 12, 7)
    distance = jnp.abs(probs - jnp.median(probs, axis=2, keepdims=True)).sum(axis=(0, 1, 3))
    assert distance.argmax() == 1 * 4 + 2


def test_transformer_without_its_last_layer_is_the_identity(transformer):
    """All of it is one residual branch."""
    x, context = normal((2, 3, 4, 6)), normal((2, 7, 10), 1)
    transformer.proj_out.kernel[...] = np.zeros((1, 1, 6, 6))
    transformer.proj_out.bias[...] = np.zeros(6)

    np.testing.assert_array_equal(call(transformer, x, context), x)


def test_attention_computes_no_map_unless_asked(transformer):
    """Without maps, queries are processed in blocks: no array has all of them beside the tokens."""
    x, context = normal((2, 24, 25, 6)), normal((2, 7, 10))

    def has_map(return_map):
        program = jax.make_jaxpr(lambda x, context: transformer(x, context, return_map=return_map))
        return f"[2,2,{24 * 25},7]" in str(program(x, context))

    assert QUERY_BLOCK < 24 * 25
    assert has_map(return_map=True)
    assert not has_map(return_map=False)


@pytest.mark.parametrize("gate", [-30.0, 0.0, 1.0, 30.0])
def test_feed_forward_is_gated_by_the_exact_gelu(gate):
    """The second half of the widened channels gates the first."""
    layer = build(FeedForward, 3, dtype=jnp.float32)
    value = normal((12,))
    layer.proj_in.kernel[...] = np.zeros((3, 24))
    layer.proj_in.bias[...] = np.append(value, np.full(12, gate))
    layer.proj_out.kernel[...] = np.eye(12)[:, :3]
    layer.proj_out.bias[...] = np.zeros(3)

    y = jax.jit(lambda layer, x: layer(x))(layer, jnp.ones((1, 1, 3)))

    # The normal distribution function of 1 is 0.8413447; the tanh approximation has 0.8411920.
    gelu = {-30.0: 0, 0.0: 0, 1.0: 0.8413447, 30.0: 30}[gate]
    np.testing.assert_allclose(y[0, 0], gelu * value[:3], rtol=1e-6)
