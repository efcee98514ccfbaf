"""Seconds of each operation of the Stable Diffusion 1.5 UNet alone, beside PyTorch's.

    pip install -r benchmarks/requirements.txt
    OMP_WAIT_POLICY=PASSIVE PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/operations.py

Both peers take turns, in every shape that the operation has in a call of two rows of 64 x 64
latents, in float32. Seconds are medians, times how often the call has the shape. Left out are
shortcuts, the embedding of time, keys and values of the prompt, sums and copies.
"""

import argparse
import collections
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from benchmarks.peers import in_turn, nchw
from fd_jax import sharding
from fd_jax.compilation import compiler_options
from fd_jax.models.blocks import group_norm
from fd_jax.ops.attention import attention
from fd_jax.ops.convolution import convolution

BATCH, HEADS, TOKENS = 2, 8, 77
CHANNELS = {64: 320, 32: 640, 16: 1280, 8: 1280}  # of levels, by their height
TRANSFORMERS = {64: 5, 32: 5, 16: 5, 8: 1}
# Height of the input, its channels, those of the output, size of the kernel, stride: how often.
CONVOLUTIONS = {
    (64, 4, 320, 3, 1): 1,
    (64, 320, 320, 3, 1): 7,
    (64, 320, 320, 3, 2): 1,
    (64, 640, 640, 3, 1): 1,
    (64, 640, 320, 3, 1): 2,
    (64, 960, 320, 3, 1): 1,
    (64, 320, 4, 3, 1): 1,
    (32, 320, 640, 3, 1): 1,
    (32, 640, 640, 3, 1): 6,
    (32, 640, 640, 3, 2): 1,
    (32, 960, 640, 3, 1): 1,
    (32, 1280, 640, 3, 1): 1,
    (32, 1920, 640, 3, 1): 1,
    (32, 1280, 1280, 3, 1): 1,
    (16, 640, 1280, 3, 1): 1,
    (16, 1280, 1280, 3, 1): 7,
    (16, 1280, 1280, 3, 2): 1,
    (16, 1920, 1280, 3, 1): 1,
    (16, 2560, 1280, 3, 1): 2,
    (8, 1280, 1280, 3, 1): 11,
    (8, 2560, 1280, 3, 1): 3,
}


class Operation(NamedTuple):
    """An operation in one shape."""

    name: str
    count: int
    ours: Callable[..., jax.Array]
    theirs: Callable[..., torch.Tensor]
    arrays: tuple[np.ndarray, ...]
    their_arrays: tuple[torch.Tensor, ...]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.from_numpy, arrays))


def convolutions() -> Iterator[Operation]:
    for (side, c_in, c_out, size, stride), count in CONVOLUTIONS.items():
        x, kernel = normal(BATCH, side, side, c_in), normal(size, size, c_in, c_out)

        def ours(x, kernel, stride=stride):
            padding, layout = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
            return convolution(x, kernel, (stride, stride), padding, dimension_numbers=layout)

        def theirs(x, kernel, stride=stride):
            return F.conv2d(x, kernel, stride=stride, padding=1)

        weight = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        yield Operation("convolution 3 x 3", count, ours, theirs, (x, kernel), (nchw(x), weight))


def attentions() -> Iterator[Operation]:
    def theirs(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    for side, count in TRANSFORMERS.items():
        dim = CHANNELS[side] // HEADS
        q, k = normal(BATCH, side**2, HEADS, dim), normal(BATCH, TOKENS, HEADS, dim)
        for name, qkv in (("self-attention", (q, q, q)), ("cross-attention", (q, k, k))):
            yield Operation(name, count, attention, theirs, qkv, tensors(*qkv))


def products() -> Iterator[Operation]:
    """Linear layers and 1 x 1 convolutions of the transformers."""

    def ours(x, kernel):
        return x @ kernel

    def ours_ff(x, kernel, kernel_out):
        value, gate = jnp.split(x @ kernel, 2, axis=-1)
        return (value * jax.nn.gelu(gate, approximate=False)) @ kernel_out

    def theirs_ff(x, weight, weight_out):
        value, gate = F.linear(x, weight).chunk(2, dim=-1)
        return F.linear(value * F.gelu(gate), weight_out)

    for side, count in TRANSFORMERS.items():
        c = CHANNELS[side]
        x, kernel = normal(BATCH, side**2, c), normal(c, c)
        wide, narrow = normal(c, 8 * c), normal(4 * c, c)
        weights = tensors(*(np.ascontiguousarray(a.T) for a in (kernel, wide, narrow)))
        [theirs_x] = tensors(x)
        # Of each transformer, in and out, four of self-attention, two of cross-attention.
        yield Operation(
            "projections", 8 * count, ours, F.linear, (x, kernel), (theirs_x, weights[0])
        )
        yield Operation(
            "feed-forward", count, ours_ff, theirs_ff, (x, wide, narrow), (theirs_x, *weights[1:])
        )


def norms() -> Iterator[Operation]:
    """Of residual blocks and the output, with SiLU, all as wide as their level."""
    for side, count in {64: 11, 32: 10, 16: 10, 8: 14}.items():
        c = CHANNELS[side]
        norm, x = group_norm(c, 32, 1e-5, rngs=nnx.Rngs(0)), normal(BATCH, side, side, c)

        def ours(x, norm=norm):
            return jax.nn.silu(norm(x))

        def theirs(x):
            return F.silu(F.group_norm(x, 32))

        yield Operation("group normalization", count, ours, theirs, (x,), (nchw(x),))


def measure(operation: Operation, rounds: int) -> dict[str, float]:
    """Returns the seconds of each peer in one call of the UNet."""
    options = compiler_options(sharding.make_mesh(), jnp.float32)
    ours = jax.jit(operation.ours, compiler_options=options)
    arrays = jax.device_put(operation.arrays)

    def call() -> None:
        with torch.inference_mode():
            operation.theirs(*operation.their_arrays)

    peers = {"fd_jax": lambda: jax.block_until_ready(ours(*arrays)), "PyTorch": call}
    return {name: seconds * operation.count for name, seconds in in_turn(peers, rounds).items()}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds (default: 10)")
    rounds = parser.parse_args().rounds
    totals: dict[str, collections.Counter] = {}
    for operations in (convolutions, attentions, products, norms):
        for operation in operations():
            totals.setdefault(operation.name, collections.Counter()).update(
                measure(operation, rounds)
            )
    totals["together"] = sum(totals.values(), collections.Counter())
    print(f"jax {jax.__version__}, torch {torch.__version__}; seconds in a call of the UNet")
    for name, seconds in totals.items():
        ours, theirs = seconds["fd_jax"], seconds["PyTorch"]
        print(f"  {name:20} fd_jax {ours:7.3f}   PyTorch {theirs:7.3f}   {theirs / ours:5.2f}")


if __name__ == "__main__":
    main()
