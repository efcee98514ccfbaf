import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fd_jax.architecture import UNetConfig
from fd_jax.models.unet import UNet
from tests.helpers.modules import build, normal, split

CONFIG = UNetConfig(
    block_out_channels=(8, 16),
    has_attention=(True, False),
    layers_per_block=1,
    cross_attention_dim=12,
    num_heads=2,
    norm_num_groups=4,
)
SMALL = dataclasses.replace(CONFIG, block_out_channels=(8,), has_attention=(True,))
X, T, CONTEXT = normal((3, 6, 10, 4)), jnp.array([7, 981, 420]), normal((3, 5, 12), 1)
LEVELS = ("down_blocks.0", "mid_block", "up_blocks.1")
# All layers that attend, their queries being pixels: 6 x 10, and half of that per side.
MAPS = {
    "down_blocks.0.attentions.0": 60,
    "mid_block.attentions.0": 15,
    "up_blocks.1.attentions.0": 60,
    "up_blocks.1.attentions.1": 60,
}


@pytest.fixture(scope="module")
def unet():
    """Graph and parameters."""
    return split(UNet, CONFIG)


@pytest.fixture(scope="module")
def predict(unet):
    graphdef, params = unet
    run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
    return lambda *inputs: run(params, *inputs)


@pytest.fixture(scope="module")
def seen(unet):
    """Noise and maps of all levels."""
    graphdef, params = unet
    return jax.jit(lambda params: nnx.merge(graphdef, params).with_maps(X, T, CONTEXT, LEVELS))(
        params
    )


def test_noise_has_the_shape_of_the_latents(predict):
    """Latents need not be square."""
    eps = predict(X, T, CONTEXT)

    assert eps.shape == X.shape
    assert eps.dtype == jnp.float32
    assert np.isfinite(eps).all()


def test_asking_for_maps_changes_no_noise(predict, seen):
    np.testing.assert_allclose(seen[0], predict(X, T, CONTEXT), rtol=1e-4, atol=1e-5)


def test_own_deep_features_give_the_same_noise(unet, predict):
    """What the top makes of the features of the same inputs is what the whole UNet predicts."""
    graphdef, params = unet

    @jax.jit
    def run(params):
        model = nnx.merge(graphdef, params)
        eps, features = model.with_features(X, T, CONTEXT)
        none = model.no_features(X)
        assert (features.shape, features.dtype) == (none.shape, none.dtype)
        return eps, model.from_features(X, T, CONTEXT, features)

    whole, top = run(params)

    np.testing.assert_array_equal(whole, predict(X, T, CONTEXT))
    np.testing.assert_allclose(top, whole, rtol=1e-5, atol=1e-6)


def test_noise_from_deep_features_depends_on_all_inputs(unet):
    graphdef, params = unet
    features = normal((3, 6, 10, 8), 2)
    run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params).from_features(*inputs))
    inputs = X, T, CONTEXT, features
    eps = run(params, *inputs)

    for i in range(len(inputs)):
        changed = [value[::-1] if i == j else value for j, value in enumerate(inputs)]
        assert np.abs(run(params, *changed) - eps).min(axis=(1, 2, 3)).max() > 0


def test_maps_are_distributions_over_the_tokens(seen):
    _, maps = seen

    assert {name: probs.shape for name, probs in maps.items()} == {
        name: (3, 2, queries, 5) for name, queries in MAPS.items()
    }
    for probs in maps.values():
        assert probs.dtype == jnp.float32
        np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ((), []),
        (("mid_block",), ["mid_block.attentions.0"]),
        (("up_blocks.1",), ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]),
        (("down_blocks.1", "up_blocks.0"), []),  # these have no attention
        (("mid_block", "down_blocks.0"), ["down_blocks.0.attentions.0", "mid_block.attentions.0"]),
    ],
)
def test_only_the_levels_asked_for_return_maps(unet, levels, names):
    graphdef, params = unet

    _, maps = jax.eval_shape(
        lambda params: nnx.merge(graphdef, params).with_maps(X, T, CONTEXT, levels), params
    )

    assert sorted(maps) == names


def test_maps_that_nobody_asks_for_are_not_computed(unet, monkeypatch):
    monkeypatch.setattr("fd_jax.ops.attention.QUERY_BLOCK", 20)
    graphdef, params = split(UNet, CONFIG, attention="chunked")

    def has_map(*levels):
        def run(params):
            return nnx.merge(graphdef, params).with_maps(X, T, CONTEXT, levels)[0]

        return "[3,2,60,5]" in str(jax.make_jaxpr(run)(params))

    assert has_map("up_blocks.1")
    assert not has_map()
    assert not has_map("mid_block")


def test_images_do_not_mix(predict):
    changed = X.at[1].add(1.0), T.at[1].add(-100), CONTEXT.at[1].add(1.0)

    before, after = predict(X, T, CONTEXT), predict(*changed)

    np.testing.assert_array_equal(before[::2], after[::2])
    assert jnp.abs(before[1] - after[1]).max() > 0.1


@pytest.mark.parametrize("name", ["x", "t", "context"])
def test_every_input_matters(predict, name):
    inputs = {"x": X, "t": T, "context": CONTEXT}
    changed = inputs | {name: inputs[name][::-1]}

    moved = jnp.abs(predict(*inputs.values()) - predict(*changed.values()))

    assert moved[0].max() > 1e-2


def test_the_context_has_no_order_of_its_own(predict):
    """Positions are the text encoder's; the UNet attends to a set of tokens."""
    eps = predict(X, T, CONTEXT[:, ::-1])

    np.testing.assert_allclose(eps, predict(X, T, CONTEXT), rtol=1e-3, atol=1e-5)


def test_every_pixel_reaches_every_pixel(predict):
    """Self-attention reaches farther than the convolutions."""
    moved = predict(X.at[:, 0, 0].add(1.0), T, CONTEXT) - predict(X, T, CONTEXT)

    assert (jnp.abs(moved).max(axis=-1) > 0).all()


def test_bfloat16_is_close():
    """The output is float32 whatever the computation is in."""
    run = jax.jit(lambda unet: unet(X, T, CONTEXT))

    low, high = (run(build(UNet, SMALL, dtype=dtype)) for dtype in (jnp.bfloat16, jnp.float32))

    assert low.dtype == jnp.float32
    assert not np.array_equal(low, high)
    assert np.linalg.norm(low - high) < 0.03 * np.linalg.norm(high)


def test_gradients_flow_through_maps():
    """Parameters before the map have a gradient, parameters behind it have none."""
    graphdef, params = split(UNet, SMALL)

    @jax.jit
    @jax.grad
    def gradients(params):
        _, maps = nnx.merge(graphdef, params).with_maps(X, T, CONTEXT, ("down_blocks.0",))
        return jnp.square(maps["down_blocks.0.attentions.0"]).sum()

    found = gradients(params)

    def size(tree):
        return sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))

    block = found["down_blocks"][0]["attentions"][0]["transformer_blocks"][0]
    for before in (block["attn1"], block["attn2"]["to_q"], block["attn2"]["to_k"]):
        assert size(before) > 1e-4
    assert size(found["conv_in"]) > 1e-4
    assert size(found["time_embedding"]) > 1e-4
    for behind in (block["attn2"]["to_v"], block["ff"], found["mid_block"], found["conv_out"]):
        assert size(behind) == 0


def test_a_second_call_traces_nothing(unet):
    graphdef, params = unet
    traces = []

    @jax.jit
    def run(params, x):
        traces.append(x)
        return nnx.merge(graphdef, params).time_embedding(x)

    run(params, T)
    run(jax.tree.map(lambda leaf: leaf + 0, params), T + 1)

    assert len(traces) == 1


def test_modules_hold_float32_parameters_alone(unet):
    """No keys and no counters, which a transformation would have to thread through."""
    leaves = nnx.to_flat_state(nnx.state(nnx.merge(*unet))).leaves

    assert {type(leaf) for leaf in leaves} == {nnx.Param}
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_levels_may_attend_otherwise():
    """The widths of the skips fit for every depth, as construction and a call show."""
    config = UNetConfig(
        block_out_channels=(4, 8),
        has_attention=(False, True),
        layers_per_block=2,
        cross_attention_dim=12,
        num_heads=2,
        norm_num_groups=2,
    )
    graphdef, params = split(UNet, config)
    levels = [f"{way}_blocks.{i}" for way in ("down", "up") for i in range(2)]

    def run(params):
        return nnx.merge(graphdef, params).with_maps(X, T, CONTEXT, levels)

    eps, maps = jax.eval_shape(run, params)

    assert eps.shape == X.shape
    assert {name: probs.shape for name, probs in maps.items()} == dict.fromkeys(
        [
            "down_blocks.1.attentions.0",
            "down_blocks.1.attentions.1",
            "up_blocks.0.attentions.0",
            "up_blocks.0.attentions.1",
            "up_blocks.0.attentions.2",
        ],
        (3, 2, 15, 5),
    )


def test_wrong_shapes_are_refused(unet):
    graphdef, params = unet
    with pytest.raises(Exception, match="b h w 4"):
        jax.eval_shape(lambda params: nnx.merge(graphdef, params)(X[..., :3], T, CONTEXT), params)
