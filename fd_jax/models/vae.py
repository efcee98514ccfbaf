"""Autoencoder between images and latents (AutoencoderKL of Stable Diffusion)."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fd_jax.architecture import VAEConfig
from fd_jax.models.blocks import ResBlock, conv1x1, conv3x3, group_norm, silu_conv_out, upsample
from fd_jax.ops.attention import attention
from fd_jax.types import Images, Latents

_EPS = 1e-6  # of every normalization
Features = Float[Array, "b h w c"]


class Posterior(NamedTuple):
    """Normal distribution over unscaled latents, given an image."""

    mean: Float[Array, "b h w 4"]
    logvar: Float[Array, "b h w 4"]


class PixelAttention(nnx.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, dim: int, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        self.group_norm = group_norm(dim, groups, _EPS, dtype=dtype, rngs=rngs)
        self.to_q = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.to_out = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        b, h, w, c = x.shape
        y = self.group_norm(x).reshape(b, h * w, c)
        q, k, v = (to(y)[:, :, None, :] for to in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out(attention(q, k, v).reshape(b, h * w, c)).reshape(b, h, w, c)


class Middle(nnx.Module):
    """Middle level: residual block, attention, residual block."""

    def __init__(self, dim: int, *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        common = {"groups": groups, "dtype": dtype, "rngs": rngs}
        self.resnets = nnx.List([ResBlock(dim, dim, None, eps=_EPS, **common) for _ in range(2)])
        self.attentions = nnx.List([PixelAttention(dim, **common)])

    def __call__(self, x: Features) -> Features:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class ResBlocks(nnx.Module):
    """Residual blocks of a level."""

    def __init__(self, dims: list[int], *, groups: int, dtype: DTypeLike, rngs: nnx.Rngs):
        common = {"eps": _EPS, "groups": groups, "dtype": dtype, "rngs": rngs}
        pairs = itertools.pairwise(dims)
        self.resnets = nnx.List([ResBlock(a, b, None, **common) for a, b in pairs])

    def __call__(self, x: Features) -> Float[Array, "b h w c_out"]:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class Encoder(nnx.Module):
    """Maps an image to the parameters of the posterior, eight per latent pixel."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = config.block_out_channels
        groups = config.norm_num_groups
        common = {"dtype": dtype, "rngs": rngs}
        self.conv_in = conv3x3(3, channels[0], **common)
        widths = [channels[0], *channels]
        self.down_blocks = nnx.List(
            [
                ResBlocks([widths[i]] + [out] * config.layers_per_block, groups=groups, **common)
                for i, out in enumerate(channels)
            ]
        )
        # Padding at the right and bottom alone, unlike in the UNet.
        self.downsamplers = nnx.List(
            [conv3x3(c, c, strides=2, padding=((0, 1), (0, 1)), **common) for c in channels[:-1]]
        )
        self.mid_block = Middle(channels[-1], groups=groups, **common)
        self.conv_norm_out = group_norm(channels[-1], groups, _EPS, **common)
        self.conv_out = conv3x3(channels[-1], 8, **common)

    def __call__(self, image: Images) -> Float[Array, "b h2 w2 8"]:
        x = self.conv_in(image)
        for i, block in enumerate(self.down_blocks):
            x = block(x)
            if i < len(self.downsamplers):
                x = self.downsamplers[i](x)
        return silu_conv_out(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nnx.Module):
    """Maps unscaled latents to an image."""

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        channels = config.block_out_channels[::-1]
        groups = config.norm_num_groups
        common = {"dtype": dtype, "rngs": rngs}
        self.conv_in = conv3x3(4, channels[0], **common)
        self.mid_block = Middle(channels[0], groups=groups, **common)
        widths = [channels[0], *channels]
        depth = config.layers_per_block + 1
        self.up_blocks = nnx.List(
            [
                ResBlocks([widths[i]] + [out] * depth, groups=groups, **common)
                for i, out in enumerate(channels)
            ]
        )
        self.upsamplers = nnx.List([conv3x3(c, c, **common) for c in channels[:-1]])
        self.conv_norm_out = group_norm(channels[-1], groups, _EPS, **common)
        self.conv_out = conv3x3(channels[-1], 3, **common)

    def __call__(self, z: Float[Array, "b h w 4"]) -> Float[Array, "b h2 w2 3"]:
        x = self.mid_block(self.conv_in(z))
        for i, block in enumerate(self.up_blocks):
            x = block(x)
            if i < len(self.upsamplers):
                x = self.upsamplers[i](upsample(x))
        return silu_conv_out(self.conv_norm_out, self.conv_out, x)


class VAE(nnx.Module):
    """Variational autoencoder: encoder and decoder.

    Args:
        config: Architecture.
        dtype: Dtype of the computation; norms and softmax stay float32.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(self, config: VAEConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        common = {"dtype": dtype, "rngs": rngs}
        self.encoder = Encoder(config, **common)
        self.decoder = Decoder(config, **common)
        self.quant_conv = conv1x1(8, 8, **common)
        self.post_quant_conv = conv1x1(4, 4, **common)

    def encode(self, image: Images) -> Posterior:
        """Encodes an image to the posterior over its unscaled latents, in float32."""
        parameters = self.quant_conv(self.encoder(image.astype(self.dtype))).astype(jnp.float32)
        mean, logvar = jnp.split(parameters, 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, -30, 20))

    def decode(self, latents: Latents) -> Float[Array, "b h2 w2 3"]:
        """Decodes scaled latents to an image, in float32 and about [-1, 1]."""
        z = (latents / self.config.scaling_factor).astype(self.dtype)
        return self.decoder(self.post_quant_conv(z)).astype(jnp.float32)

    def reconstruct(self, image: Images) -> Float[Array, "b h2 w2 3"]:
        """Encodes an image and decodes the mean of its posterior."""
        return self.decode(self.encode(image).mean * self.config.scaling_factor)
