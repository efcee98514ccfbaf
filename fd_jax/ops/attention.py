"""Softmax attention, by the kernel that suits the shapes and the devices."""

import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fd_jax.errors import InputError
from fd_jax.ops.devices import devices_traced_for

AttentionKind = Literal["auto", "plain", "chunked", "by_head", "cudnn", "flash"]


QUERY_BLOCK = 256  # queries per block of `chunked`
CPU_BLOCK = 2 * 1024 * 1024  # probabilities per block of `by_head`, 8 MB
_FLASH_BLOCK = 512  # queries and keys per block; larger blocks take no less memory
_FLASH_MIN_BLOCK = 128
_LARGE = 1024 * 1024  # queries times keys that are not held at once if that can be avoided


class _Limits(NamedTuple):
    """Shapes and dtypes that a kernel accepts, known before it is called."""

    dtypes: tuple[str, ...]
    max_head_dim: int
    head_dim_multiple: int = 1
    length_multiple: int = 1


_LIMITS = {
    # 128 is the limit of every GPU that has the kernel; Hopper's own is 256.
    "cudnn": _Limits(("bfloat16", "float16"), max_head_dim=128, head_dim_multiple=8),
    # Heads of 512 are the VAE's; larger ones were not tried.
    "flash": _Limits(("bfloat16", "float32"), max_head_dim=512, length_multiple=_FLASH_MIN_BLOCK),
}


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
        kind: Implementation. `plain` holds all q * k probabilities; `chunked` those of a block of
            queries; `by_head` those of a few heads and a block of queries, as many as a CPU caches,
            which is fastest there, but gathers a sharded batch; `cudnn` none (GPU, 16-bit floats);
            `flash` none (TPU, bfloat16, lengths that are multiples of 128). `flash` has to know the
            mesh that shards a batch, see `sharding.on_mesh`. `auto` picks one for the devices that
            the function is compiled for.

    Raises:
        InputError: The kind is unknown, or its kernel does not accept the arrays.
    """
    check_kind(kind)
    if kind == "auto":
        kind = _fastest(q, k)
    if kind in _LIMITS and (reason := _refusal(kind, q, k)) is not None:
        raise InputError(f"attention is {kind!r} {reason}")
    if kind == "cudnn":
        return _cudnn(q, k, v)
    if kind == "flash":
        return _flash(q, k, v)
    if kind == "chunked":
        return _chunked(q, k, v)
    if kind == "by_head":
        return _by_head(q, k, v)
    return apply_attention(attention_probs(q, k), v)


def attention_probs(
    q: Float[Array, "b q h d"],
    k: Float[Array, "b k h d"],
    mask: Bool[Array, "q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """Attention probabilities in float32: each query's sum to one over the keys.

    Args:
        q: Queries.
        k: Keys.
        mask: True where a query may attend to a key; None for everywhere.
    """
    # Scale q rather than the logits: it is smaller, which saves a pass over the q x k matrix.
    q = q * q.shape[-1] ** -0.5
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def apply_attention(probs: Float[Array, "b h q k"], v: Float[Array, "b k h d"]) -> Array:
    """Returns the values averaged with attention probabilities, [b, q, h, d]."""
    return jnp.einsum("bhqk,bkhd->bqhd", probs.astype(v.dtype), v)


def check_kind(kind: str) -> None:
    """Raises InputError if there is no such attention."""
    if kind not in get_args(AttentionKind):
        raise InputError(f"attention is {kind!r}, expected one of {get_args(AttentionKind)}")


def _fastest(q: Array, k: Array) -> AttentionKind:
    """Returns the fastest implementation that accepts the arrays on the devices traced for."""
    platform, num_devices = devices_traced_for()
    size = q.shape[1] * k.shape[1]
    if platform == "gpu" and _refusal("cudnn", q, k) is None:
        return "cudnn"
    is_tpu = platform == "tpu" and q.dtype == jnp.bfloat16  # float32 products are shortened there
    if is_tpu and size >= _LARGE and _refusal("flash", q, k) is None:
        mesh = jax.sharding.get_abstract_mesh()
        is_sharded = not mesh.empty and q.shape[0] % num_devices == 0
        if num_devices == 1 or is_sharded:
            return "flash"
    if platform == "cpu" and num_devices == 1:
        return "by_head"
    return "chunked" if size > _LARGE else "plain"


def _refusal(kind: str, q: Array, k: Array) -> str | None:
    """Returns why a kernel does not accept arrays, or None if it does."""
    limits = _LIMITS[kind]
    head_dim = q.shape[-1]
    if q.dtype.name not in limits.dtypes:
        return f"with {q.dtype.name}, expected one of {limits.dtypes}"
    if head_dim > limits.max_head_dim or head_dim % limits.head_dim_multiple:
        return (
            f"with heads of {head_dim}, expected a multiple of {limits.head_dim_multiple} up to "
            f"{limits.max_head_dim}"
        )
    for length in (q.shape[1], k.shape[1]):
        if length % limits.length_multiple:
            return f"with {length} queries or keys, expected a multiple of {limits.length_multiple}"
    return None


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    """Calls cuDNN's kernel, which takes no odd lengths where gradients are computed."""
    queries, keys = q.shape[1], k.shape[1]
    if queries % 2 == 0 and keys % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    def pad(x: Array) -> Array:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    lengths = jnp.full(q.shape[:1], keys, jnp.int32)
    out = jax.nn.dot_product_attention(
        pad(q), pad(k), pad(v), key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return out[:, :queries]


def _flash_block(length: int) -> int:
    return math.gcd(length, _FLASH_BLOCK)


def _flash(q: Array, k: Array, v: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _splash(q, k, v)
    # The compiler does not shard kernels: each device calls it with its own rows.
    rows = P(mesh.axis_names)
    by_device = jax.shard_map(_splash, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    return by_device(q, k, v)


def _splash(q: Array, k: Array, v: Array) -> Array:
    """Calls JAX's splash attention with a full mask."""
    # Imported late: it takes long, and only TPUs need it.
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


def _in_blocks(x: Array, axis: int, max_size: int) -> Array:
    """Moves blocks along `axis` to the front, the last one padded with zeros."""
    length = x.shape[axis]
    num_blocks = -(-length // max_size)
    size = -(-length // num_blocks)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, num_blocks * size - length)
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], num_blocks, size, *x.shape[axis + 1 :]), axis, 0)


def _chunked(q: Array, k: Array, v: Array) -> Array:
    def block(q: Array) -> Array:
        return apply_attention(attention_probs(q, k), v)

    # [blocks b q h d], then the blocks of a query axis side by side again.
    out = jax.lax.map(jax.checkpoint(block), _in_blocks(q, 1, QUERY_BLOCK))
    return jnp.moveaxis(out, 0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, : q.shape[1]]


def _by_head(q: Array, k: Array, v: Array) -> Array:
    b, length, heads, dim = q.shape
    queries, group = _cpu_block(b * heads, length, k.shape[1])

    def grouped(x: Array) -> Array:
        return x.swapaxes(1, 2).reshape(-1, group, x.shape[1], dim)

    def attend(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        # Beside the values a one, whose product is the sum of the exponentials.
        v = jnp.pad(v.swapaxes(1, 2), ((0, 0), (0, 1), (0, 0)), constant_values=1)

        def block(q: Array) -> Array:
            # Keys by queries: a CPU reduces over the first axis vector by vector.
            logits = jnp.einsum("gkd,gqd->gkq", k, q, preferred_element_type=jnp.float32)
            largest = jax.lax.stop_gradient(logits.max(axis=1, keepdims=True))
            exp = jnp.exp(logits - largest).astype(v.dtype)
            out = jnp.einsum("gdk,gkq->gdq", v, exp, preferred_element_type=jnp.float32)
            return (out[:, :dim] / out[:, dim:]).astype(v.dtype).swapaxes(1, 2)

        # [blocks g q d], then the blocks side by side again.
        out = jax.lax.map(jax.checkpoint(block), _in_blocks(q, 1, queries))
        return jnp.moveaxis(out, 0, 1).reshape(group, -1, dim)[:, :length]

    out = jax.lax.map(attend, (grouped(q * dim**-0.5), grouped(k), grouped(v)))
    return out.reshape(b, heads, length, dim).swapaxes(1, 2)


def _cpu_block(heads: int, queries: int, keys: int) -> tuple[int, int]:
    """Returns how many queries and heads a block has: two heads if possible, one a core."""
    block = max(1, min(queries, CPU_BLOCK // (2 * keys)))
    fitting = [n for n in range(1, heads + 1) if heads % n == 0 and n * block * keys <= CPU_BLOCK]
    return block, max(fitting, default=1)
