"""Transformer of the UNet: self-attention over pixels, cross-attention to the context."""

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fd_jax.models.blocks import conv1x1, group_norm
from fd_jax.ops.attention import AttentionKind, apply_attention, attention, attention_probs
from fd_jax.types import Context

AttentionMap = Float[Array, "b heads q k"]  # probabilities over the keys, of each query


class Attention(nnx.Module):
    """Multi-head attention from `dim` channels to a context of `context_dim` channels."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int,
        kind: AttentionKind,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.kind: AttentionKind = kind
        self.to_q = nnx.Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(context_dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(context_dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.to_out = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b q c"], context: Float[Array, "b k d"], *, return_map: bool = False
    ) -> tuple[Float[Array, "b q c"], AttentionMap | None]:
        def split_heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q = split_heads(self.to_q(x))
        k = split_heads(self.to_k(context))
        v = split_heads(self.to_v(context))
        probs = None
        if return_map:
            probs = attention_probs(q, k)
            y = apply_attention(probs, v)
        else:
            y = attention(q, k, v, kind=self.kind)
        return self.to_out(y.reshape(x.shape)), probs


class FeedForward(nnx.Module):
    """Feed-forward network with GEGLU (arXiv:2002.05202): one half of the units gates the other."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.proj_in = nnx.Linear(dim, 8 * dim, dtype=dtype, rngs=rngs)
        self.proj_out = nnx.Linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        value, gate = jax.numpy.split(self.proj_in(x), 2, axis=-1)
        return self.proj_out(value * jax.nn.gelu(gate, approximate=False))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward network, each on a residual branch."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int,
        kind: AttentionKind,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        def norm():
            return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)

        attention = {"num_heads": num_heads, "kind": kind, "dtype": dtype, "rngs": rngs}
        self.norm1 = norm()
        self.norm2 = norm()
        self.norm3 = norm()
        self.attn1 = Attention(dim, dim, **attention)
        self.attn2 = Attention(dim, context_dim, **attention)
        self.ff = FeedForward(dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], context: Context, *, return_map: bool
    ) -> tuple[Float[Array, "b n c"], AttentionMap | None]:
        y = self.norm1(x)
        x = x + self.attn1(y, y)[0]
        y, probs = self.attn2(self.norm2(x), context, return_map=return_map)
        x = x + y
        return x + self.ff(self.norm3(x)), probs


class Transformer(nnx.Module):
    """Transformer block over the pixels of a feature map.

    Args:
        dim: Number of channels of the feature map.
        context_dim: Number of channels of the context.
        num_heads: Number of attention heads.
        groups: Number of groups of the first normalization.
        kind: Implementation of attention, see `ops.attention`.
        dtype: Dtype of the computation; norms and softmax stay float32.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        num_heads: int,
        groups: int,
        kind: AttentionKind,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.norm = group_norm(dim, groups, 1e-6, **common)
        self.proj_in = conv1x1(dim, dim, **common)
        block = TransformerBlock(dim, context_dim, num_heads=num_heads, kind=kind, **common)
        self.transformer_blocks = nnx.List([block])
        self.proj_out = conv1x1(dim, dim, **common)

    def __call__(
        self, x: Float[Array, "b h w c"], context: Context, *, return_map: bool = False
    ) -> tuple[Float[Array, "b h w c"], AttentionMap | None]:
        b, h, w, c = x.shape
        y = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        y, probs = self.transformer_blocks[0](y, context, return_map=return_map)
        return x + self.proj_out(y.reshape(b, h, w, c)), probs
