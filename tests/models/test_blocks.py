import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fd_jax.models.blocks import ResBlock, conv3x3, group_norm, upsample
from tests.helpers.modules import build, normal


def make_block(out_channels=4, time_dim=5):
    return build(ResBlock, 4, out_channels, time_dim, groups=2, eps=1e-5, dtype=jnp.float32)


call = jax.jit(lambda module, *arrays: module(*arrays))


def test_residual_block_without_its_last_layer_is_the_identity():
    block, x = make_block(), normal((2, 3, 6, 4))
    block.conv2.kernel[...] = np.zeros((3, 3, 4, 4))
    block.conv2.bias[...] = np.zeros(4)

    np.testing.assert_array_equal(call(block, x, normal((2, 5))), x)


@pytest.mark.parametrize("out_channels", [4, 6])
def test_residual_block_joins_widths(out_channels):
    block = make_block(out_channels)

    assert hasattr(block, "conv_shortcut") == (out_channels != 4)
    assert call(block, normal((2, 3, 6, 4)), normal((2, 5))).shape == (2, 3, 6, out_channels)


def test_time_reaches_every_pixel_of_its_own_image():
    block, x = make_block(), jnp.zeros((2, 5, 6, 4))
    temb = normal((2, 5))

    moved = call(block, x, temb.at[0].add(1.0)) - call(block, x, temb)

    assert (jnp.abs(moved[0]).max(axis=-1) > 1e-4).all()
    np.testing.assert_array_equal(moved[1], 0)


def test_block_of_the_vae_has_no_time():
    block = make_block(time_dim=None)

    assert not hasattr(block, "time_emb_proj")
    assert call(block, normal((2, 3, 6, 4))).shape == (2, 3, 6, 4)


def test_group_norm_of_far_away_data():
    """Two passes lose nothing where the mean is a thousand deviations away."""
    x = normal((2, 8, 6, 4))
    norm = group_norm(4, 2, 1e-5, rngs=nnx.Rngs(0))

    np.testing.assert_allclose(call(norm, x + 1000), call(norm, x), rtol=0, atol=1e-3)


def test_group_norm_of_bfloat16_has_statistics_in_float32():
    x = normal((2, 8, 6, 4)).astype(jnp.bfloat16)
    low, high = (group_norm(4, 2, 1e-5, dtype=d, rngs=nnx.Rngs(0)) for d in ("bfloat16", "float32"))

    y = call(low, x)

    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, call(high, x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_convolution_with_stride_looks_to_both_sides():
    """Padding is as in PyTorch: the first output is centred on the first pixel."""
    conv = conv3x3(1, 1, strides=2, use_bias=False, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    x = normal((1, 6, 4, 1))

    np.testing.assert_array_equal(call(conv, x), x[:, ::2, ::2])


def test_upsampling_repeats_pixels():
    x = normal((2, 3, 5, 4))

    y = jax.jit(upsample)(x)

    assert y.shape == (2, 6, 10, 4)
    for i in (0, 1):
        for j in (0, 1):
            np.testing.assert_array_equal(y[:, i::2, j::2], x)
