import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from fd_jax import sharding
from fd_jax.errors import InputError
from fd_jax.ops import attention as module
from fd_jax.ops.attention import attention, attention_probs, check_kind
from tests.helpers.modules import normal

every_blocked_kind = pytest.mark.parametrize("kind", ["chunked", "by_head"])


def qkv(batch, queries, keys, heads, dim, dtype=jnp.float32):
    """Queries larger than normal, so that the softmax is not flat."""
    lengths = (queries, keys, keys)
    q, k, v = (normal((batch, length, heads, dim), i) for i, length in enumerate(lengths))
    return [x.astype(dtype) for x in (3 * q, k, v)]


attention = functools.partial(jax.jit, static_argnames="kind")(attention)
attention_probs = jax.jit(attention_probs)


def relative_error(got, want):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@every_blocked_kind
@pytest.mark.parametrize("queries", [1, 256, 257, 1100])
def test_blocks_change_nothing(kind, queries, monkeypatch):
    monkeypatch.setattr(module, "CPU_BLOCK", 2048)  # up to 146 queries of two heads
    q, k, v = qkv(4, queries, 7, 5, 4)

    got = attention(q, k, v, kind=kind)

    np.testing.assert_allclose(got, attention(q, k, v, kind="plain"), rtol=1e-5, atol=1e-5)


@every_blocked_kind
@pytest.mark.parametrize("queries", [8, 23])
def test_blocks_change_no_gradient(kind, queries, monkeypatch):
    monkeypatch.setattr(module, "QUERY_BLOCK", 8)
    monkeypatch.setattr(module, "CPU_BLOCK", 2 * 7 * 8)
    arrays = qkv(4, queries, 7, 5, 4)
    weights = normal(arrays[0].shape)

    def gradients(kind):
        @jax.jit
        @functools.partial(jax.grad, argnums=(0, 1, 2))
        def gradients(q, k, v):
            return jnp.sum(weights * module.attention(q, k, v, kind=kind))

        return gradients(*arrays)

    for got, want in zip(gradients(kind), gradients("plain"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "block"),
    [
        (16, 4096, 4096, (256, 2)),
        (15, 4096, 4096, (256, 1)),
        (16, 4096, 77, (4096, 4)),
        (16, 64, 77, (64, 16)),
        (1, 10, 10**7, (1, 1)),
    ],
)
def test_a_block_on_a_cpu_is_as_large_as_the_cache(heads, queries, keys, block):
    assert module._cpu_block(heads, queries, keys) == block


@pytest.mark.parametrize("kind", ["plain", "chunked", "by_head"])
def test_attention_in_bfloat16(kind):
    arrays = qkv(3, 513, 7, 5, 4, jnp.bfloat16)
    exact = attention(*(x.astype(jnp.float32) for x in arrays), kind="plain")

    got = attention(*arrays, kind=kind)

    assert got.dtype == jnp.bfloat16
    assert relative_error(got, exact) < 2**-6


@pytest.mark.parametrize("kind", ["plain", "chunked", "by_head"])
def test_attention_with_large_logits(kind):
    """Each query takes the value of the key that it resembles; nothing overflows."""
    k = 100 * jnp.eye(6)[None, :, None, :]
    v = jnp.arange(12.0).reshape(1, 6, 1, 2)
    q = 10 * k[:, jnp.array([4, 0, 3])]

    got = attention(q, k, jnp.concatenate([v] * 3, axis=-1), kind=kind)

    np.testing.assert_allclose(got[0, :, 0, :2], [[8, 9], [0, 1], [6, 7]])


@every_blocked_kind
def test_blocks_never_hold_all_probabilities(kind):
    """That is what they are for."""
    q, k, v = qkv(3, 1100, 701, 5, 4)

    def largest(kind):
        jaxpr = jax.make_jaxpr(functools.partial(module.attention, kind=kind))(q, k, v)
        return max(aval.size for aval in avals(jaxpr.jaxpr))

    assert largest("plain") >= 3 * 5 * 1100 * 701
    assert largest(kind) <= 3 * 5 * 512 * 701


def avals(jaxpr):
    """What is computed anywhere inside of `jaxpr`."""
    for equation in jaxpr.eqns:
        yield from (variable.aval for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from avals(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(("queries", "keys", "kind"), [(3, 5, "plain"), (2049, 513, "chunked")])
def test_auto_gathers_no_batch(queries, keys, kind):
    """`by_head` mixes rows with heads, so that it is not for several devices."""
    assert jax.device_count() == 8
    arrays = qkv(2, queries, keys, 3, 4)

    got, want = (
        str(jax.make_jaxpr(functools.partial(module.attention, kind=kind))(*arrays))
        for kind in ("auto", kind)
    )

    assert got == want


@pytest.mark.parametrize(
    ("keys", "dim"), [pytest.param(256, 40, marks=pytest.mark.slow), (384, 80)]
)
def test_flash_is_attention(keys, dim):
    """The kernel for TPUs, interpreted: three blocks of queries, one or three of keys."""
    arrays = qkv(1, 384, keys, 2, dim, jnp.bfloat16)

    with pltpu.force_tpu_interpret_mode():
        got = out_and_gradients("flash", *arrays)

    assert_near_plain(got, arrays)


def test_flash_leaves_rows_on_their_devices():
    mesh = sharding.make_mesh(fsdp=2)
    arrays = qkv(8, 128, 128, 2, 40, jnp.bfloat16)

    def on_mesh(*arrays):
        with sharding.on_mesh(mesh):
            return out_and_gradients("flash", *arrays)

    # As XLA's operations: the interpreter in Python would wait for a thread of each device.
    with pltpu.force_tpu_interpret_mode(True):
        got = jax.jit(on_mesh)(*jax.device_put(arrays, sharding.batched(mesh)))

    assert got[0].sharding.is_equivalent_to(sharding.batched(mesh), 4)
    assert_near_plain(got, arrays)


def out_and_gradients(kind, *arrays):
    out, backward = jax.vjp(functools.partial(module.attention, kind=kind), *arrays)
    return out, *backward(normal(out.shape, dtype=out.dtype))


def assert_near_plain(got, arrays):
    exact = out_and_gradients("plain", *(x.astype(jnp.float32) for x in arrays))
    for x, y in zip(got, exact, strict=True):
        assert x.dtype == jnp.bfloat16
        assert relative_error(x, y) < 2**-6


@pytest.mark.parametrize(("queries", "keys"), [(100, 128), (128, 77)])
def test_flash_refuses_what_fills_no_blocks(queries, keys):
    with pytest.raises(InputError, match="expected a multiple of 128"):
        module.attention(*qkv(1, queries, keys, 2, 40), kind="flash")


FLASH = {
    "64 x 64 pixels": (8, 4096, 4096, 40),
    "32 x 32 pixels": (16, 1024, 1024, 80),
    "the VAE's": (8, 4096, 4096, 512),
}
NOT_FLASH = {
    "16 x 16 pixels": (8, 256, 256, 160),
    "words": (8, 4096, 77, 40),
    "no blocks": (8, 1600, 1600, 40),
    "rows that the devices do not share": (4, 4096, 4096, 40),
}


@pytest.mark.parametrize("name", [*FLASH, *NOT_FLASH])
def test_auto_on_a_tpu(name):
    """It goes by the devices of the mesh: this machine has a CPU."""
    assert uses_kernel(*(FLASH | NOT_FLASH)[name], jnp.bfloat16) == (name in FLASH)


def test_auto_shortens_no_products_on_a_tpu():
    assert not uses_kernel(*FLASH["64 x 64 pixels"], jnp.float32)


def uses_kernel(batch, queries, keys, dim, dtype):
    device = AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = AbstractMesh(
        (4, 2), sharding.DATA_AXES, axis_types=(AxisType.Auto,) * 2, abstract_device=device
    )
    q, k = (jax.ShapeDtypeStruct((batch, length, 2, dim), dtype) for length in (queries, keys))
    with jax.sharding.use_abstract_mesh(mesh):
        return "pallas_call" in str(jax.make_jaxpr(module.attention)(q, k, k))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_probabilities_sum_to_one(dtype):
    q, k, _ = qkv(3, 6, 7, 5, 4, dtype)

    probs = attention_probs(q, k)

    assert probs.shape == (3, 5, 6, 7)
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)


def test_softmax_of_bfloat16_is_taken_in_float32():
    """Products of bfloat16 that differ in the tenth bit keep their difference."""
    q = jnp.full((1, 1, 1, 4), 16, jnp.bfloat16)
    k = jnp.array([[1, 1, 1, 1], [1, 1, 1, 1 + 2**-7]], jnp.bfloat16)[None, :, None]

    probs = attention_probs(q, k)

    np.testing.assert_allclose(probs[0, 0, 0, 1], 1 / (1 + np.exp(-8 * 2**-7)), rtol=1e-6)


def test_masked_keys_have_no_probability():
    q, k, _ = qkv(3, 6, 6, 5, 4)
    mask = jnp.tri(6, dtype=bool)

    probs = attention_probs(q, k, mask)

    assert (np.asarray(probs)[..., ~np.asarray(mask)] == 0).all()
    np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
    alone = attention_probs(q[:, 3:4], k[:, :4])
    np.testing.assert_allclose(probs[:, :, 3:4, :4], alone, rtol=1e-5)


def test_unknown_attention_is_refused():
    with pytest.raises(InputError, match="attention is 'fast', expected one of"):
        check_kind("fast")


SHAPES = {  # queries, keys, width of a head
    "self-attention of 64 x 64 latents": (4096, 4096, 40),
    "self-attention of 32 x 32 latents": (1024, 1024, 80),
    "words": (4096, 77, 40),
    "words of the lowest level": (64, 77, 160),
    "the VAE's": (4096, 4096, 512),
    "CLIP's photographs": (257, 257, 64),
}


def chosen(platform, kind, shape, dtype=jnp.bfloat16):
    """Implementation that `auto` picks for one device of a platform."""
    queries, keys, dim = shape
    device = AbstractDevice(kind, None, platform)
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    arrays = [jax.ShapeDtypeStruct((2, n, 8, dim), dtype) for n in (queries, keys)]
    found = []

    def trace(q, k):
        found.append(module._fastest(q, k))
        return q

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(trace, *arrays)
    return found[0]


@pytest.mark.parametrize("name", SHAPES)
def test_auto_on_a_gpu(name):
    """cuDNN's kernel where it accepts the heads, whatever the lengths; else XLA's."""
    kind = chosen("gpu", "NVIDIA H100", SHAPES[name])
    if SHAPES[name][2] <= 128:
        assert kind == "cudnn"
    else:
        assert kind in ("plain", "chunked")
    kind = chosen("gpu", "NVIDIA H100", SHAPES[name], jnp.float32)
    assert kind in ("plain", "chunked")


@pytest.mark.parametrize(("queries", "keys"), [(64, 77), (257, 257), (64, 78)])
def test_cudnn_is_called_with_even_lengths(monkeypatch, queries, keys):
    """Where gradients are computed it takes no odd ones; padded keys are masked."""
    lengths = []
    arrays = [x.astype(jnp.bfloat16) for x in qkv(2, queries, keys, 2, 8)]
    expected = attention(*arrays, kind="plain")
    dot_product_attention = jax.nn.dot_product_attention

    def kernel(q, k, v, *, implementation, **options):
        lengths.extend((q.shape[1], k.shape[1]))
        return dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    got = module._cudnn(*arrays)

    assert all(length % 2 == 0 for length in lengths)
    assert relative_error(got, expected) < 2e-2


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "message"),
    [
        ("cudnn", (64, 64, 160), jnp.bfloat16, "heads of 160, expected a multiple of 8 up to 128"),
        ("cudnn", (64, 64, 12), jnp.bfloat16, "heads of 12"),
        ("cudnn", (64, 64, 40), jnp.float32, "with float32, expected one of"),
        ("flash", (128, 77, 40), jnp.bfloat16, "77 queries or keys, expected a multiple of 128"),
    ],
)
def test_a_kernel_refuses_before_it_is_traced(kind, shape, dtype, message):
    queries, keys, dim = shape
    with pytest.raises(InputError, match=message):
        module.attention(*qkv(1, queries, keys, 2, dim, dtype), kind=kind)
