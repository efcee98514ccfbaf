import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from fd_jax import sharding
from fd_jax.ops.convolution import convolution, winograd3x3
from tests.helpers.modules import normal

PADDING = [(1, 1), (1, 1)]
LAYOUT = ("NHWC", "HWIO", "NHWC")


@jax.jit
def defined(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), PADDING, dimension_numbers=LAYOUT)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (10, 8)])
def test_winograd_is_a_convolution(height, width):
    x, kernel = normal((3, height, width, 5), 0), normal((3, 3, 5, 7), 1)

    got = jax.jit(winograd3x3)(x, kernel)

    np.testing.assert_allclose(got, defined(x, kernel), rtol=1e-5, atol=1e-5)


def test_winograd_has_the_gradients_of_a_convolution():
    x, kernel, weights = normal((2, 6, 4, 5), 0), normal((3, 3, 5, 7), 1), normal((2, 6, 4, 7), 2)

    def gradients(convolve):
        loss = jax.grad(lambda *arrays: jnp.sum(weights * convolve(*arrays)), argnums=(0, 1))
        return jax.jit(loss)(x, kernel)

    for got, want in zip(gradients(winograd3x3), gradients(defined), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def is_winograd(x, kernel, *, strides=(1, 1), padding=PADDING, dtype="float32", device="cpu", n=1):
    """Traces a convolution for `n` devices, and says if it is by Winograd's algorithm."""
    mesh = AbstractMesh(
        (n, 1),
        sharding.DATA_AXES,
        axis_types=(AxisType.Auto,) * 2,
        abstract_device=AbstractDevice(device, 1, device),
    )
    convolve = functools.partial(
        convolution, strides=strides, padding=padding, dimension_numbers=LAYOUT
    )
    arrays = (jax.ShapeDtypeStruct(shape, dtype) for shape in (x, kernel))
    with jax.sharding.use_abstract_mesh(mesh):
        return "conv_general_dilated" not in str(jax.make_jaxpr(convolve)(*arrays))


LEVEL = ((2, 32, 32, 640), (3, 3, 640, 640))


def test_winograd_is_taken_where_it_is_faster():
    assert is_winograd(*LEVEL)
    assert is_winograd((8, 16, 16, 1280), (3, 3, 1280, 1280))


@pytest.mark.parametrize(
    "case",
    {
        "few channels": {"x": (8, 32, 32, 128), "kernel": (3, 3, 128, 640)},
        "few pixels": {"x": (2, 16, 16, 1280), "kernel": (3, 3, 1280, 1280)},
        "the VAE's pixels": {"x": (1, 512, 512, 256), "kernel": (3, 3, 256, 256)},
        "an odd width": {"x": (2, 32, 33, 640)},
        "another kernel": {"kernel": (5, 5, 640, 640)},
        "strides": {"strides": (2, 2)},
        "padding of one side": {"padding": [(0, 1), (0, 1)]},
        "16 bits": {"dtype": "bfloat16"},
        "several devices": {"n": 8},
        "a GPU": {"device": "gpu"},
    }.items(),
    ids=lambda case: case[0],
)
def test_winograd_is_left_where_it_is_not(case):
    assert not is_winograd(**dict(zip(("x", "kernel"), LEVEL, strict=True)) | case[1])
