"""UNet of Stable Diffusion 1.x, the architecture of both TDM and SDM."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from fd_jax.architecture import UNetConfig
from fd_jax.models.attention import AttentionMap, Transformer
from fd_jax.models.blocks import ResBlock, conv3x3, group_norm, silu_conv_out, upsample
from fd_jax.ops.attention import AttentionKind
from fd_jax.ops.layers import Remat, remat, time_embedding
from fd_jax.types import Context, Latents

Features = Float[Array, "b h w c"]


class Level(nnx.Module):
    """Level of the UNet: residual blocks, each followed by a transformer where it attends.

    Args:
        config: Architecture of the whole UNet.
        widths: Input and output channels of each residual block.
        attends: Whether the level has transformers.
        dtype: Dtype of the computation.
        kind: Implementation of attention, see `ops.attention`.
        rngs: Keys for parameter initialization. None is kept after construction.
        num_transformers: Number of transformers, by default one per residual block. The middle
            level has one between two residual blocks.
    """

    def __init__(
        self,
        config: UNetConfig,
        widths: list[tuple[int, int]],
        *,
        attends: bool,
        dtype: DTypeLike,
        kind: AttentionKind,
        rngs: nnx.Rngs,
        num_transformers: int | None = None,
    ):
        time_dim = 4 * config.block_out_channels[0]
        common = {"groups": config.norm_num_groups, "dtype": dtype, "rngs": rngs}
        self.resnets = nnx.List(
            [ResBlock(*width, time_dim, eps=config.norm_eps, **common) for width in widths]
        )
        if attends:
            dim = widths[-1][1]
            transformer = {"num_heads": config.num_heads, "kind": kind, **common}
            self.attentions = nnx.List(
                [
                    Transformer(dim, config.cross_attention_dim, **transformer)
                    for _ in range(num_transformers or len(widths))
                ]
            )


class UNet(nnx.Module):
    """Predicts the noise in latents, given timestep and context.

    Args:
        config: Architecture.
        dtype: Dtype of the computation; norms, softmax and parameters stay float32.
        attention: Implementation of attention, see `ops.attention`.
        remat: Activations that the backward pass rematerializes, see `ops.layers.remat`.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        attention: AttentionKind = "auto",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        channels = config.block_out_channels
        depth = config.layers_per_block
        common = {"dtype": dtype, "rngs": rngs}
        level = {"kind": attention, **common}
        self.config = config
        self.dtype = dtype
        self.remat: Remat = remat
        self.conv_in = conv3x3(config.in_channels, channels[0], **common)
        self.time_embedding = TimeEmbedding(channels[0], **common)

        skips = [channels[0]]  # channels of the skip connections from the down path to the up path
        width = channels[0]
        down, downsamplers = [], []
        for i, (out, attends) in enumerate(zip(channels, config.has_attention, strict=True)):
            widths = [(width, out)] + [(out, out)] * (depth - 1)
            down.append(Level(config, widths, attends=attends, **level))
            is_last = i == len(channels) - 1
            if not is_last:
                downsamplers.append(conv3x3(out, out, strides=2, **common))
            skips += [out] * (depth if is_last else depth + 1)
            width = out
        self.down_blocks = nnx.List(down)
        self.downsamplers = nnx.List(downsamplers)

        self.mid_block = Level(
            config, [(width, width)] * 2, attends=True, num_transformers=1, **level
        )

        up, upsamplers = [], []
        mirrored = zip(reversed(channels), reversed(config.has_attention), strict=True)
        for i, (out, attends) in enumerate(mirrored):
            widths = []
            for _ in range(depth + 1):
                widths.append((width + skips.pop(), out))
                width = out
            up.append(Level(config, widths, attends=attends, **level))
            if i < len(channels) - 1:
                upsamplers.append(conv3x3(out, out, **common))
        self.up_blocks = nnx.List(up)
        self.upsamplers = nnx.List(upsamplers)

        self.conv_norm_out = group_norm(
            channels[0], config.norm_num_groups, config.norm_eps, **common
        )
        self.conv_out = conv3x3(channels[0], config.out_channels, **common)

    def __call__(self, x: Latents, t: Int[Array, " b"], context: Context) -> Latents:
        """Predicts the noise, in float32.

        Args:
            x: Noisy latents. Height and width are multiples of `config.downscale`.
            t: Timesteps, 0..999.
            context: Text embeddings, with or without subjects.
        """
        return self.with_maps(x, t, context, ())[0]

    @jax.named_scope("unet")
    def with_maps(
        self, x: Latents, t: Int[Array, " b"], context: Context, levels: Collection[str]
    ) -> tuple[Latents, dict[str, AttentionMap]]:
        """Predicts the noise, and returns the cross-attention maps of some levels.

        Args:
            x: Noisy latents.
            t: Timesteps.
            context: Text embeddings, the keys of the maps.
            levels: Names such as `down_blocks.1`, `mid_block`, `up_blocks.2`. A level without
                cross-attention has no map.

        Returns:
            The predicted noise, and the attention map in float32 of each layer, by its name
            (`down_blocks.1.attentions.0`). Queries are pixels, row by row.
        """
        eps, maps, _ = self._predict(x, t, context, levels)
        return eps, maps

    @jax.named_scope("unet")
    def with_features(
        self, x: Latents, t: Int[Array, " b"], context: Context
    ) -> tuple[Latents, Features]:
        """Predicts the noise, and returns the deep features, for `from_features`."""
        eps, _, features = self._predict(x, t, context, ())
        return eps, features

    @jax.named_scope("unet")
    def from_features(
        self, x: Latents, t: Int[Array, " b"], context: Context, features: Features
    ) -> Latents:
        """Predicts the noise from the deep features of another timestep.

        Only the first convolution and the last layer of the up path run, a twelfth of the
        arithmetic at full size: DeepCache, arXiv:2312.00858, at its outermost skip connection.
        """
        temb, h = self._embed(x, t)
        return self._out(features, h, temb, context.astype(self.dtype))[0]

    def no_features(self, x: Latents) -> Features:
        """Returns zeros in the shape of the deep features of `x`."""
        return jnp.zeros((*x.shape[:3], self.config.block_out_channels[0]), self.dtype)

    def _predict(
        self, x: Latents, t: Int[Array, " b"], context: Context, levels: Collection[str]
    ) -> tuple[Latents, dict[str, AttentionMap], Features]:
        """Returns the predicted noise, maps as `with_maps` does, and the deep features."""
        maps: dict[str, AttentionMap] = {}

        def keep(name: str, i: int, probs: AttentionMap | None) -> None:
            if probs is not None:
                maps[f"{name}.attentions.{i}"] = probs

        def layer(name: str, level: Level, i: int, h: Features) -> Array:
            h, probs = self._layer(level, i, h, temb, context, return_map=name in levels)
            keep(name, i, probs)
            return h

        context = context.astype(self.dtype)
        temb, h = self._embed(x, t)
        skips = [h]
        for i, level in enumerate(self.down_blocks):
            for j in range(len(level.resnets)):
                h = layer(f"down_blocks.{i}", level, j, h)
                skips.append(h)
            if i < len(self.downsamplers):
                h = self.downsamplers[i](h)
                skips.append(h)

        first, last = self.mid_block.resnets
        [attention] = self.mid_block.attentions
        h = self._run(first, h, temb)
        h, probs = self._run(attention, h, context, return_map="mid_block" in levels)
        keep("mid_block", 0, probs)
        h = self._run(last, h, temb)

        for i, level in enumerate(self.up_blocks):
            is_top = i == len(self.upsamplers)
            for j in range(len(level.resnets) - is_top):
                h = layer(f"up_blocks.{i}", level, j, jnp.concatenate([h, skips.pop()], axis=-1))
            if not is_top:
                h = self.upsamplers[i](upsample(h))

        name = f"up_blocks.{len(self.upsamplers)}"
        eps, probs = self._out(h, skips.pop(), temb, context, return_map=name in levels)
        keep(name, len(self.up_blocks[-1].resnets) - 1, probs)
        return eps, maps, h

    def _embed(self, x: Latents, t: Int[Array, " b"]) -> tuple[Array, Features]:
        """Returns the time embedding, and the features of the first convolution."""
        return self.time_embedding(t), self.conv_in(x.astype(self.dtype))

    def _out(
        self,
        h: Features,
        skip: Float[Array, "b h w skip"],
        temb: Array,
        context: Context,
        *,
        return_map: bool = False,
    ) -> tuple[Latents, AttentionMap | None]:
        """Returns the noise that the last layer of the up path predicts, and its map."""
        level = self.up_blocks[-1]
        h = jnp.concatenate([h, skip], axis=-1)
        last = len(level.resnets) - 1
        h, probs = self._layer(level, last, h, temb, context, return_map=return_map)
        eps = silu_conv_out(self.conv_norm_out, self.conv_out, h)
        return eps.astype(jnp.float32), probs

    def _layer(
        self, level: Level, i: int, h: Features, temb: Array, context: Context, *, return_map: bool
    ) -> tuple[Array, AttentionMap | None]:
        """Runs a residual block, and its transformer where the level has them."""
        h = self._run(level.resnets[i], h, temb)
        if not hasattr(level, "attentions"):
            return h, None
        return self._run(level.attentions[i], h, context, return_map=return_map)

    def _run(self, block: nnx.Module, *args: Array, **static: bool) -> Any:
        return remat(partial(_call, **static), self.remat)(block, *args)


def _call(block: Callable[..., Any], *args: Array, **static: bool) -> Any:
    return block(*args, **static)


class TimeEmbedding(nnx.Module):
    """Two-layer network over the sinusoidal embedding of a timestep."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dim = dim
        self.dtype = dtype
        self.linear_1 = nnx.Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(4 * dim, 4 * dim, dtype=dtype, rngs=rngs)

    def __call__(self, t: Int[Array, " b"]) -> Float[Array, "b d"]:
        sinusoids = time_embedding(t, self.dim).astype(self.dtype)
        return self.linear_2(nnx.silu(self.linear_1(sinusoids)))
