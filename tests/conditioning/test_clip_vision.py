import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.architecture import CLIPVisionConfig
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.ops.layers import resize
from tests.helpers.modules import build, normal

CONFIG = CLIPVisionConfig(
    hidden_size=10,
    intermediate_size=14,
    num_layers=2,
    num_heads=2,
    image_size=12,
    patch_size=4,
    projection_dim=6,
)
PIXELS = jax.nn.sigmoid(normal((2, 12, 12, 3)))

encode = jax.jit(lambda encoder, pixels: encoder(pixels))


@pytest.fixture
def encoder():
    return build(ImageEncoder, CONFIG)


@pytest.mark.parametrize("size", [(5, 7), (40, 24)])
def test_images_of_any_size_are_resized(encoder, size):
    pixels = jax.nn.sigmoid(normal((2, *size, 3)))

    embeddings = encode(encoder, pixels)

    assert embeddings.shape == (2, 6)
    resized = resize(pixels, (12, 12))
    np.testing.assert_allclose(embeddings, encode(encoder, resized), rtol=1e-4, atol=1e-5)


def test_images_do_not_mix(encoder):
    before, after = encode(encoder, PIXELS), encode(encoder, PIXELS.at[0].multiply(0.5))

    np.testing.assert_array_equal(before[1], after[1])
    assert jnp.abs(before[0] - after[0]).max() > 1e-3


def test_every_patch_matters_and_has_its_place(encoder):
    before = encode(encoder, PIXELS[:1])

    for i in range(3):
        for j in range(3):
            patch = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
            moved = encode(encoder, PIXELS[:1].at[0, patch[0], patch[1]].set(0.0)) - before
            assert jnp.abs(moved).max() > 1e-4
    swapped = jnp.concatenate([PIXELS[:1, 4:], PIXELS[:1, :4]], axis=1)
    assert jnp.abs(encode(encoder, swapped) - before).max() > 1e-3


def test_pixels_are_normalized_as_clip_does(encoder):
    """An image of the mean colour is zero to the patch embedding."""
    mean = jnp.broadcast_to(jnp.array([0.48145466, 0.4578275, 0.40821073]), (1, 12, 12, 3))

    before = encode(encoder, mean)
    encoder.patch_embedding.kernel[...] = normal((4, 4, 3, 10), 1)

    np.testing.assert_allclose(encode(encoder, mean), before, atol=1e-5)


def test_embeddings_are_not_normalized(encoder):
    before = encode(encoder, PIXELS)
    encoder.visual_projection.kernel[...] = 3 * encoder.visual_projection.kernel[...]

    np.testing.assert_allclose(encode(encoder, PIXELS), 3 * before, rtol=1e-5)


def test_the_patch_embedding_has_no_bias(encoder):
    assert encoder.patch_embedding.bias is None
    assert encoder.visual_projection.bias is None


def test_bfloat16_is_close(encoder):
    low, high = (
        np.asarray(encode(e, PIXELS), np.float32)
        for e in (build(ImageEncoder, CONFIG, dtype=jnp.bfloat16), encoder)
    )

    assert 0 < np.linalg.norm(low - high) < 0.03 * np.linalg.norm(high)
