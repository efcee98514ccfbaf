"""Functions of arrays, without parameters: attention, embeddings, activations."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

AttentionKind = Literal["auto", "plain", "chunked", "cudnn"]

QUERY_BLOCK = 256  # queries of one block of the chunked form
_CUDNN_MAX_HEAD_DIM = 128  # on every GPU that has the kernel


def attention(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    v: Float[Array, "b k h d"],
    *,
    kind: AttentionKind = "auto",
) -> Float[Array, "b q h d"]:
    """Softmax attention, with the softmax in float32.

    Args:
        q: Queries of h heads.
        k: Keys.
        v: Values.
        kind: `plain` holds all q * k probabilities; `chunked` those of one block of queries;
            `cudnn` none, but wants a GPU and 16-bit floats. `auto` takes what the machine does
            fastest.
    """
    if kind == "auto":
        kind = _fastest(q, k)
    if kind == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if kind == "chunked":
        return _chunked(q, k, v)
    return weigh(attention_probs(q, k), v)


def attention_probs(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """Attention probabilities in float32: each query's sum to one over the keys.

    Args:
        q: Queries.
        k: Keys.
        mask: Which key each query may see; all where None.
    """
    # q is scaled, not the product: q * k numbers would have to be read again.
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def weigh(probs: Float[Array, "b h q k"], v: Float[Array, "b k h d"]) -> Array:
    return jnp.einsum("bhqk,bkhd->bqhd", probs.astype(v.dtype), v)


def _fastest(q: Array, k: Array) -> AttentionKind:
    is_long = q.shape[1] * k.shape[1] > QUERY_BLOCK * 1024 and q.shape[1] > QUERY_BLOCK
    if jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16):
        head_dim = q.shape[-1]
        if head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM:
            return "cudnn"
    return "chunked" if is_long else "plain"


def _chunked(q: Array, k: Array, v: Array) -> Array:
    batch, length, heads, dim = q.shape
    num_blocks = -(-length // QUERY_BLOCK)
    # Blocks of equal size, the last filled up with zeros, whose output is cut off.
    q = jnp.pad(q, ((0, 0), (0, num_blocks * QUERY_BLOCK - length), (0, 0), (0, 0)))
    blocks = q.reshape(batch, num_blocks, QUERY_BLOCK, heads, dim).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda block: weigh(attention_probs(block, k), v)), blocks)
    return out.swapaxes(0, 1).reshape(batch, -1, heads, dim)[:, :length]


def time_embedding(t: Int[Array, " b"], dim: int) -> Float[Array, "b {dim}"]:
    """Cosines, then sines, of timesteps `t` at `dim / 2` frequencies from 1 down to 1e-4.

    Not quite to 1e-4: Stable Diffusion divides by dim / 2, where Eq. 5 of arXiv:1706.03762 would
    reach its end.
    """
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(dim // 2) / (dim // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """CLIP's activation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def resize(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Array:
    """Bilinear interpolation with half-pixel centres, antialiased where it shrinks."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), "bilinear")


def num_params(tree: object) -> int:
    """How many numbers the arrays of `tree`, or their shapes, hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def as_dtype(name: DTypeLike) -> jnp.dtype:
    """The dtype of computation that `name` stands for. Raises ValueError."""
    try:
        dtype = jnp.dtype(name)
    except TypeError:
        dtype = None
    if dtype not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
        raise ValueError(f"dtype is {name!r}, expected 'float32' or 'bfloat16'")
    return dtype
