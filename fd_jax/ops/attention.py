"""Functions of arrays, without parameters: attention, embeddings, activations."""

import math
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fd_jax.errors import InputError

AttentionKind = Literal["auto", "plain", "chunked", "by_head", "cudnn", "flash"]


QUERY_BLOCK = 512  # queries of one block of the chunked forms
_CUDNN_MAX_HEAD_DIM = 128  # on every GPU that has the kernel
_FLASH_MAX_HEAD_DIM = 512  # the VAE's, and what was tried
_FLASH_BLOCK, _FLASH_MIN_BLOCK = 512, 128  # queries and keys; larger ones take no less memory
_LARGE = 1024 * 1024  # queries times keys that are not held at once where that can be helped


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
            `by_head` those of one block, head and row, which is fastest on a CPU but would gather
            a batch that is divided over devices; `cudnn` none, but wants a GPU and 16-bit floats;
            `flash` none, but wants a TPU and lengths that are multiples of 128. Where several
            devices share the batch, it must be told of them, see `sharding.on_mesh`. `auto`
            takes what suits the devices that the program is for.

    Raises:
        InputError: The kind is unknown, or `flash` cannot divide the lengths into blocks.
    """
    check_kind(kind)
    if kind == "auto":
        kind = _fastest(q, k)
    if kind == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if kind == "flash":
        return _flash(q, k, v)
    if kind == "chunked":
        return _chunked(q, k, v)
    if kind == "by_head":
        return _by_head(q, k, v)
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


def check_kind(kind: str) -> None:
    """Raises InputError if there is no such attention."""
    if kind not in get_args(AttentionKind):
        raise InputError(f"attention is {kind!r}, expected one of {get_args(AttentionKind)}")


def _fastest(q: Array, k: Array) -> AttentionKind:
    mesh = jax.sharding.get_abstract_mesh()
    platform, num_devices = jax.default_backend(), jax.device_count()
    if not mesh.empty:  # compiling ahead, the host has not what the program is for
        platform, num_devices = mesh.abstract_device.platform, mesh.size
    batch, length, _, head_dim = q.shape
    is_large = length * k.shape[1] >= _LARGE
    has_cudnn = head_dim % 8 == 0 and head_dim <= _CUDNN_MAX_HEAD_DIM
    if platform == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16) and has_cudnn:
        return "cudnn"
    if platform == "tpu" and q.dtype == jnp.bfloat16 and is_large:
        has_blocks = min(_flash_block(length), _flash_block(k.shape[1])) >= _FLASH_MIN_BLOCK
        is_divided = num_devices == 1 or (not mesh.empty and batch % num_devices == 0)
        if has_blocks and is_divided and head_dim <= _FLASH_MAX_HEAD_DIM:
            return "flash"
    if platform == "cpu" and num_devices == 1:
        return "by_head"
    return "chunked" if length * k.shape[1] > _LARGE else "plain"


def _flash_block(length: int) -> int:
    return math.gcd(length, _FLASH_BLOCK)


def _flash(q: Array, k: Array, v: Array) -> Array:
    for length in (q.shape[1], k.shape[1]):
        if _flash_block(length) < _FLASH_MIN_BLOCK:
            raise InputError(
                f"attention is 'flash' with {length} queries or keys, expected a multiple of "
                f"{_FLASH_MIN_BLOCK}"
            )
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash(q, k, v)
    # The compiler divides no kernel over devices: each calls it with its own rows.
    rows = P(mesh.axis_names)
    divided = jax.shard_map(_splash, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return divided(q, k, v)


def _splash(q: Array, k: Array, v: Array) -> Array:
    """JAX's own kernel for TPUs. Its mask is full."""
    # Imported here, as it takes long and is for TPUs alone.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, lengths = q.shape[2], (q.shape[1], k.shape[1])
    block_q, block_kv = map(_flash_block, lengths)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.FullMask(lengths)] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
    y: Any = jax.vmap(kernel)(q, k, v)  # an array, as the kernel returns no residuals
    return y.swapaxes(1, 2)


def _in_blocks(x: Array, axis: int) -> Array:
    """Moves blocks along `axis` to the front; the last is filled up with zeros."""
    length = x.shape[axis]
    num_blocks = -(-length // QUERY_BLOCK)
    size = -(-length // num_blocks)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, num_blocks * size - length)
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], num_blocks, size, *x.shape[axis + 1 :]), axis, 0)


def _chunked(q: Array, k: Array, v: Array) -> Array:
    def block(q: Array) -> Array:
        return weigh(attention_probs(q, k), v)

    # [blocks b q h d], then the blocks of a query axis side by side again.
    out = jax.lax.map(jax.checkpoint(block), _in_blocks(q, axis=1))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, : q.shape[1]]


def _by_head(q: Array, k: Array, v: Array) -> Array:
    b, length, heads, dim = q.shape

    def flatten(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(b * heads, -1, x.shape[-1])

    def head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv

        def block(q: Array) -> Array:
            logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32)
            # Normalized after the product: fewer divisions by a factor of keys / dim.
            exp = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
            out = jnp.matmul(exp.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (out / exp.sum(axis=-1, keepdims=True)).astype(v.dtype)

        return jax.lax.map(jax.checkpoint(block), _in_blocks(q, axis=0)).reshape(-1, dim)

    out = jax.lax.map(head, (flatten(q * dim**-0.5), flatten(k), flatten(v)))
    return out[:, :length].reshape(b, heads, length, dim).swapaxes(1, 2)
