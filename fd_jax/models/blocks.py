"""Layers that UNet and VAE share."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fd_jax.ops.convolution import convolution


def group_norm(channels: int, groups: int, eps: float, **kwargs) -> nnx.GroupNorm:
    """Creates a group normalization with statistics in float32, in two passes as in PyTorch."""
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=eps, use_fast_variance=False, **kwargs
    )


# Padding as in PyTorch: at stride 2, Flax's default pads one side alone.
conv3x3 = partial(nnx.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=convolution)
conv1x1 = partial(nnx.Conv, kernel_size=(1, 1), padding=0)


class ResBlock(nnx.Module):
    """Residual block: norm, SiLU and convolution twice, the time embedding added in between.

    Args:
        in_channels: Number of input channels. If it differs from `out_channels`, the residual
            connection is a 1x1 convolution.
        out_channels: Number of output channels.
        time_dim: Number of channels of the time embedding; None without one, as in the VAE.
        groups: Number of groups of the normalizations.
        eps: Epsilon of the normalizations.
        dtype: Dtype of the computation; normalizations stay float32.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_dim: int | None,
        *,
        groups: int,
        eps: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.norm1 = group_norm(in_channels, groups, eps, **common)
        self.conv1 = conv3x3(in_channels, out_channels, **common)
        if time_dim is not None:
            self.time_emb_proj = nnx.Linear(time_dim, out_channels, **common)
        self.norm2 = group_norm(out_channels, groups, eps, **common)
        self.conv2 = conv3x3(out_channels, out_channels, **common)
        if in_channels != out_channels:
            self.conv_shortcut = conv1x1(in_channels, out_channels, **common)

    def __call__(
        self, x: Float[Array, "b h w c_in"], temb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w c_out"]:
        y = self.conv1(nnx.silu(self.norm1(x)))
        if temb is not None:
            y = y + self.time_emb_proj(nnx.silu(temb))[:, None, None, :]
        y = self.conv2(nnx.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Doubles height and width by repeating pixels."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def silu_conv_out(norm: nnx.GroupNorm, conv: nnx.Conv, x: Float[Array, "b h w c"]) -> Array:
    """Applies the output layers that UNet, encoder and decoder share."""
    return conv(jax.nn.silu(norm(x)))
