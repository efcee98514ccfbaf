import jax
import jax.numpy as jnp
import pytest

from fd_jax.architecture import Architecture
from fd_jax.networks import make_networks
from fd_jax.training.flops import count_flops, peak_flops

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_a_product():
    assert count_flops(lambda a, b: a @ b, A, B) == PRODUCT


def test_loops_count_as_often_as_they_run():
    def loop(a, b):
        return jax.lax.scan(lambda total, _: (total + a @ b, None), a @ b, length=4)[0]

    assert count_flops(jax.jit(loop), A, B) == 5 * PRODUCT


def test_the_dearest_branch_counts():
    def choice(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert count_flops(choice, A, B) == PRODUCT


def test_the_way_back_costs_two_products():
    gradient = jax.grad(lambda a, b: ((a @ b) ** 2).sum(), argnums=(0, 1))
    assert count_flops(gradient, A, B) == 3 * PRODUCT


def test_a_convolution_and_its_gradients():
    x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 6))

    def convolve(x, kernel, stride=1):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    forward = 2 * 8 * 8 * 6 * 27
    assert count_flops(convolve, x, kernel) == forward
    gradient = jax.grad(lambda x, kernel: convolve(x, kernel).sum(), argnums=(0, 1))
    assert count_flops(gradient, x, kernel) == 3 * forward


@pytest.mark.slow
def test_the_unet_of_stable_diffusion():
    """803 GFLOP a sample, by hand from its shapes: 444 convolutions, 233 linear, 126 attention."""
    network = make_networks(Architecture(), attention="plain").unet
    shape = jax.ShapeDtypeStruct
    inputs = shape((1, 64, 64, 4), "float32"), shape((1,), "int32"), shape((1, 77, 768), "float32")
    flops = count_flops(lambda params, *xs: network.bind(params)(*xs), network.abstract, *inputs)
    assert flops == pytest.approx(803e9, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert peak_flops(kind) == peak
