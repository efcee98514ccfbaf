"""Convolutions of 3x3 pixels, by the algorithm that suits the shapes and the devices."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from fd_jax.ops.devices import devices_traced_for

# Where Winograd's algorithm is faster on a CPU. Its arrays are four times as large as the input and
# the output: with fewer channels they take longer than the products that they save, and with more
# pixels, as of the VAE or a large batch, they take gigabytes. With fewer pixels transforming the
# kernel takes longer.
_MIN_CHANNELS = 256
_MIN_PIXELS = 2048
_MAX_PIXELS = 65536


def convolution(
    x: Float[Array, "b h w c_in"],
    kernel: Float[Array, "kh kw c_in c_out"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options,
) -> Float[Array, "b h2 w2 c_out"]:
    """Convolves images as `jax.lax.conv_general_dilated` does, for `flax.nnx.Conv`.

    Args:
        x: Images.
        kernel: Kernel.
        strides: Strides along height and width.
        padding: Zeros before and after height and width.
        **options: Other arguments of `conv_general_dilated`, as `nnx.Conv` has them by default.
    """
    is_plain = tuple(strides) == (1, 1) and tuple(padding) == ((1, 1), (1, 1))
    if is_plain and _is_faster_by_winograd(x, kernel):
        # The way back computes the transforms again rather than hold arrays of such a size.
        return jax.checkpoint(winograd3x3)(x, kernel)
    return lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _is_faster_by_winograd(x: Array, kernel: Array) -> bool:
    b, h, w, _ = x.shape
    return (
        devices_traced_for() == ("cpu", 1)
        and x.dtype == kernel.dtype == jnp.float32  # the transforms would round in 16 bits
        and kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _MIN_CHANNELS
        and h % 2 == w % 2 == 0
        and _MIN_PIXELS <= b * h * w <= _MAX_PIXELS
    )


def winograd3x3(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "3 3 c_in c_out"]
) -> Float[Array, "b h w c_out"]:
    """Convolves images padded by a pixel of zeros, with 4 products for each 9 of the definition.

    This is F(2x2, 3x3) of Lavin and Gray (arXiv:1509.09308): 16 matrix products over tiles of 2x2
    pixels, between sums and differences of the pixels, of the kernel and of the products.

    Args:
        x: Images of an even height and width.
        kernel: Kernel.
    """
    b, h, w, channels = x.shape
    tiles = (b, h // 2, w // 2)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    # The pixels at row i and column j of all tiles' surroundings of 4x4, each [tiles, c_in].
    pixels = [[x[:, i : i + h - 1 : 2, j : j + w - 1 : 2] for j in range(4)] for i in range(4)]
    pixels = _along_both(_of_pixels, pixels)
    kernels = _along_both(_of_kernel, [list(row) for row in kernel])
    # Sixteen products rather than one with a batch of 16, for which their operands would be copied.
    products = [
        [(p.reshape(-1, channels) @ k).reshape(*tiles, -1) for p, k in zip(*rows, strict=True)]
        for rows in zip(pixels, kernels, strict=True)
    ]
    outputs = _along_both(_of_products, products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in outputs], axis=2)
    return y.reshape(b, h, w, -1)


def _along_both(
    transform: Callable[..., list[Array]], grid: Sequence[Sequence[Array]]
) -> list[list[Array]]:
    """Transforms the columns of a grid of arrays, then its rows."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _of_pixels(a: Array, b: Array, c: Array, d: Array) -> list[Array]:
    return [a - c, b + c, c - b, b - d]


def _of_kernel(a: Array, b: Array, c: Array) -> list[Array]:
    ends, middle = (a + c) / 2, b / 2
    return [a, ends + middle, ends - middle, c]


def _of_products(a: Array, b: Array, c: Array, d: Array) -> list[Array]:
    return [a + b + c, b - c - d]
