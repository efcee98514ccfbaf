import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fd_jax.architecture import CLIPTextConfig
from fd_jax.conditioning.clip_text import TextEncoder
from tests.helpers.modules import build, split

CONFIG = CLIPTextConfig(
    hidden_size=12, intermediate_size=20, num_layers=2, num_heads=3, vocab_size=60, max_length=9
)
TOKENS = jnp.array([[58, 3, 17, 5, 59, 59, 59], [58, 20, 21, 22, 23, 24, 59]])

encode = jax.jit(lambda encoder, tokens: encoder(tokens))


@pytest.fixture(scope="module")
def encoder():
    return build(TextEncoder, CONFIG)


def test_tokens_see_only_what_comes_before():
    """The derivative of encoding i by the embedding of token j is zero where j is behind i."""
    graphdef, params = split(TextEncoder, CONFIG)
    tokens = jnp.arange(6)[None]  # all different, so that each has an embedding to itself

    @jax.jit
    @jax.jacobian
    def jacobian(embedding):
        encoder = nnx.merge(graphdef, params | {"token_embedding": {"embedding": embedding}})
        return encoder(tokens)[0]

    reach = jnp.abs(jacobian(params["token_embedding"]["embedding"])).max(axis=(1, 3))[:, :6]

    assert (reach[np.triu_indices(6, 1)] == 0).all()
    assert (reach[np.tril_indices(6)] > 0).all()


def test_prompts_do_not_mix(encoder):
    together = encode(encoder, TOKENS)
    changed = encode(encoder, TOKENS.at[0].set(7))

    np.testing.assert_array_equal(together[1], changed[1])
    assert together.shape == (2, 7, 12)


@pytest.mark.parametrize("length", [1, 9])
def test_a_prefix_is_encoded_alike(encoder, length):
    """Any length up to `max_length` will do."""
    tokens = jnp.concatenate([TOKENS, TOKENS[:, :2]], axis=1)

    np.testing.assert_allclose(
        encode(encoder, tokens[:, :length]), encode(encoder, tokens)[:, :length], atol=1e-5
    )


def test_order_matters(encoder):
    a, b = encode(encoder, jnp.array([[1, 2, 3], [2, 1, 3]]))

    assert jnp.abs(a - b)[2].max() > 1e-3


def test_encodings_are_normalized(encoder):
    """Up to scale and offset of the last normalization."""
    norm = encoder.final_layer_norm

    encodings = (encode(encoder, TOKENS) - norm.bias[...][None, None]) / norm.scale[...][None, None]

    np.testing.assert_allclose(encodings.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(encodings.std(axis=-1), 1, rtol=1e-3)


def test_bfloat16_is_close(encoder):
    low, high = (
        np.asarray(encode(e, TOKENS), np.float32)
        for e in (build(TextEncoder, CONFIG, dtype=jnp.bfloat16), encoder)
    )

    assert 0 < np.linalg.norm(low - high) < 0.03 * np.linalg.norm(high)
