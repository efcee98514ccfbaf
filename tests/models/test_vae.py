import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.architecture import VAEConfig
from fd_jax.models.vae import VAE
from tests.helpers.modules import build, normal

SIZES = {"block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2}
CONFIG = VAEConfig(**SIZES)
IMAGES, LATENTS = jnp.tanh(normal((2, 8, 12, 3))), normal((2, 4, 6, 4), 1)

encode = jax.jit(lambda vae, images: vae.encode(images))
decode = jax.jit(lambda vae, latents: vae.decode(latents))


@pytest.fixture
def vae():
    return build(VAE, CONFIG)


def test_latents_are_smaller_by_downscale(vae):
    posterior = encode(vae, IMAGES)

    assert CONFIG.downscale == 2
    for latents in posterior:
        assert latents.shape == (2, 4, 6, 4)
        assert latents.dtype == jnp.float32


def test_images_are_larger_by_downscale(vae):
    images = decode(vae, LATENTS)

    assert images.shape == (2, 8, 12, 3)
    assert images.dtype == jnp.float32


def test_images_do_not_mix(vae):
    for function, inputs in ((encode, IMAGES), (decode, LATENTS)):
        before, after = function(vae, inputs), function(vae, inputs.at[0].add(0.5))

        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y[1]), before, after)
        assert jax.tree.all(
            jax.tree.map(lambda x, y: jnp.abs(x[0] - y[0]).max() > 0, before, after)
        )


@pytest.mark.parametrize(
    ("tap", "expected"),
    [
        ((0, 0), lambda x: x[::2, ::2]),
        ((1, 1), lambda x: x[1::2, 1::2]),
        ((2, 2), lambda x: np.pad(x[2::2, 2::2], ((0, 1), (0, 1), (0, 0)))),
    ],
)
def test_the_encoder_pads_right_and_bottom(vae, tap, expected):
    """Windows begin at every second pixel; only the last of them reaches over the edge."""
    conv = vae.encoder.downsamplers[0]
    kernel = np.zeros((3, 3, 4, 4), np.float32)
    kernel[tap] = np.eye(4)
    conv.kernel[...] = kernel
    conv.bias[...] = np.zeros(4)
    x = normal((1, 6, 8, 4))

    np.testing.assert_array_equal(conv(x)[0], expected(np.asarray(x[0])))


def test_logvar_is_clipped(vae):
    """The mean beside it is not clipped."""
    vae.quant_conv.bias[...] = np.array([1e3, -1e3, 0, 0, 1e3, -1e3, 0, 0], np.float32)

    mean, logvar = encode(vae, IMAGES)

    np.testing.assert_array_equal(logvar[..., 0], 20)
    np.testing.assert_array_equal(logvar[..., 1], -30)
    assert jnp.abs(logvar[..., 2:]).max() < 20
    assert mean[..., 0].min() > 900
    assert mean[..., 1].max() < -900


def test_latents_are_scaled(vae):
    """`decode` takes scaled latents: what the factor is does not matter to the picture."""
    unscaled = build(VAE, VAEConfig(**SIZES, scaling_factor=1.0))

    images = decode(vae, LATENTS)

    np.testing.assert_allclose(
        decode(unscaled, LATENTS / CONFIG.scaling_factor), images, rtol=1e-4, atol=1e-5
    )
    assert jnp.abs(decode(unscaled, LATENTS) - images).max() > 1e-2


def test_every_pixel_reaches_every_pixel(vae):
    """Attention reaches farther than the convolutions."""
    moved = decode(vae, LATENTS.at[:, 0, 0].add(1.0)) - decode(vae, LATENTS)

    assert (jnp.abs(moved).max(axis=-1) > 0).all()


def test_computes_in_bfloat16_and_returns_float32():
    low = build(VAE, CONFIG, dtype=jnp.bfloat16)

    for function, inputs in ((low.encode, IMAGES), (low.decode, LATENTS)):
        program, outputs = jax.make_jaxpr(function, return_shape=True)(inputs)

        assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(np.float32)}
        convolutions = [e for e in program.eqns if e.primitive.name == "conv_general_dilated"]
        assert convolutions
        assert {e.outvars[0].aval.dtype for e in convolutions} == {np.dtype(jnp.bfloat16)}
