"""Transformer layers of CLIP's text and image encoders."""

from functools import partial

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fd_jax.ops.attention import apply_attention, attention_probs
from fd_jax.ops.layers import quick_gelu

Hidden = Float[Array, "b n d"]
layer_norm = partial(nnx.LayerNorm, epsilon=1e-5, use_fast_variance=False)


class SelfAttention(nnx.Module):
    """Multi-head self-attention, with an optional mask."""

    def __init__(self, dim: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.q_proj = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k_proj = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.v_proj = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.out_proj = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Hidden, mask: Bool[Array, "n n"] | None) -> Hidden:
        def heads(y: Array) -> Array:
            return y.reshape(*y.shape[:2], self.num_heads, -1)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        return self.out_proj(apply_attention(attention_probs(q, k, mask), v).reshape(x.shape))


class MLP(nnx.Module):
    """Two layers with CLIP's quick GELU."""

    def __init__(self, dim: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(dim, hidden_dim, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Hidden) -> Hidden:
        return self.fc2(quick_gelu(self.fc1(x)))


class EncoderLayer(nnx.Module):
    """Pre-norm transformer layer: self-attention and MLP, each with a residual connection."""

    def __init__(
        self, dim: int, num_heads: int, hidden_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        common = {"dtype": dtype, "rngs": rngs}
        self.self_attn = SelfAttention(dim, num_heads, **common)
        self.layer_norm1 = layer_norm(dim, **common)
        self.mlp = MLP(dim, hidden_dim, **common)
        self.layer_norm2 = layer_norm(dim, **common)

    def __call__(self, x: Hidden, mask: Bool[Array, "n n"] | None = None) -> Hidden:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))
