import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.sampling.generate import initial_noise, sample
from fd_jax.sampling.guidance import as_eps, guided, guided_reusing
from fd_jax.sampling.solvers import SolverState, init_state, solver_step
from fd_jax.sampling.stages import SamplerConfig, make_steps, pad_steps
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from tests.helpers.modules import normal

X, CONTEXTS = normal((2, 6, 9, 4)), normal((3, 2, 5, 7), 1)
GUIDANCE = jnp.float32(5)
# Two steps in the scene stage, three in the fusion stage, five in the subject stage.
SETTINGS = {"num_steps": 10, "alpha": 0.2, "beta": 0.5}


def steps_of(**settings):
    """Filled up to ten rows, so that the tests share their programs."""
    steps = make_steps(SamplerConfig(**SETTINGS | settings), ScheduleConfig())
    return pad_steps(steps, 10)


def stand_in(weight):
    """A denoiser that depends on all of its inputs, pixel by pixel."""

    def denoiser(x, t, context):
        mixed = jnp.tanh(
            x @ (weight * jnp.eye(4)[::-1]) + jnp.mean(context, axis=(1, 2))[:, None, None, None]
        )
        return mixed + jnp.sin(weight * t / 100)[:, None, None, None] * jnp.cos(x)

    return denoiser


TDM, SDM = stand_in(0.7), stand_in(1.3)


@functools.partial(jax.jit, static_argnames=("tdm", "sdm", "trace", "smoothing", "prediction_type"))
def jitted(state, contexts, steps, *, tdm, sdm, prediction_type="epsilon", **static):
    schedule = ScheduleConfig(prediction_type=prediction_type)
    tdm, sdm = (guided(as_eps(model, schedule), GUIDANCE) for model in (tdm, sdm))
    return sample(tdm, sdm, state, contexts, steps, **static)


def run(steps, x=X, contexts=CONTEXTS, tdm=TDM, sdm=SDM, **static):
    return jitted(init_state(x), contexts, steps, tdm=tdm, sdm=sdm, **static)


def latents(steps, **inputs):
    return run(steps, **inputs)[0].x


class Counter:
    """Counts evaluations of networks as they happen, not as they are traced."""

    def __init__(self):
        self.tdm, self.sdm = (self.counted(name, net) for name, net in (("tdm", TDM), ("sdm", SDM)))

    def counted(self, name, denoiser):
        def counted(x, t, context):
            jax.debug.callback(functools.partial(self.count, name), t, context[:, 0, 0])
            return denoiser(x, t, context)

        return counted

    def count(self, name, t, contexts):
        self.rows[name] += len(t)
        self.contexts.append(np.asarray(contexts))

    def __call__(self, steps):
        self.rows, self.contexts = collections.Counter(), []
        jax.block_until_ready(run(steps, tdm=self.tdm, sdm=self.sdm))
        jax.effects_barrier()
        return self


@pytest.fixture(scope="module")
def count():
    return Counter()


@pytest.mark.parametrize(
    ("settings", "tdm", "sdm"),
    [
        ({}, 5, 8),
        ({"mode": "weighted"}, 5, 8),
        ({"mode": "delayed"}, 0, 10),
        ({"mode": "tdm"}, 10, 0),
        ({"mode": "sdm"}, 0, 10),
        ({"solver": "pndm", "num_steps": 9}, 6, 7),
    ],
)
def test_a_network_that_a_step_does_not_need_does_not_run(count, settings, tdm, sdm):
    """Two evaluations an image of each network that it needs: 2, 4 and 2 by stage."""
    steps = steps_of(**settings)

    rows = count(steps).rows

    assert rows["tdm"] == 2 * tdm * len(X)
    assert rows["sdm"] == 2 * sdm * len(X)
    assert sum(rows.values()) == steps.num_evaluations * len(X)


def test_padding_runs_no_network(count):
    assert count(steps_of(num_steps=1, mode="sdm")).rows == {"sdm": 2 * len(X)}


def test_contexts_of_delayed_conditioning(count):
    """From the empty prompt to the text, and after the scene stage to the subjects."""
    contexts = count(steps_of(mode="delayed")).contexts

    null, text, augmented = CONTEXTS[:, :, 0, 0]
    for i, pairs in enumerate(contexts):
        np.testing.assert_array_equal(pairs[::2], null)
        np.testing.assert_array_equal(pairs[1::2], text if i < 2 else augmented)


def test_contexts_of_each_model(count):
    """The TDM goes from the empty prompt to the text, the SDM from there to the subjects."""
    for mode, expected in (("tdm", CONTEXTS[:2]), ("sdm", CONTEXTS[1:])):
        for pairs in count(steps_of(mode=mode)).contexts:
            np.testing.assert_array_equal(pairs.reshape(2, 2).T, expected[:, :, 0, 0])


def test_stages_belong_to_their_models():
    """All scene is the TDM alone, all subject the SDM alone, whatever the other would say."""
    scene, subject = steps_of(alpha=1.0, beta=1.0), steps_of(alpha=0.0, beta=0.0)

    np.testing.assert_array_equal(latents(scene), latents(steps_of(mode="tdm")))
    np.testing.assert_array_equal(latents(subject), latents(steps_of(mode="sdm")))
    np.testing.assert_array_equal(latents(scene, sdm=TDM), latents(scene))
    np.testing.assert_array_equal(latents(subject, tdm=SDM), latents(subject))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_weight_of_all_is_one_model(weight):
    steps = steps_of(mode="weighted", sdm_weight=weight, alpha=0.0, beta=1.0)

    np.testing.assert_allclose(
        latents(steps), latents(steps_of(mode="sdm" if weight else "tdm")), rtol=1e-5, atol=1e-6
    )


def test_weights_blend_the_noises():
    """After one step the latents are linear in the weight."""

    def after(weight):
        settings = {"num_steps": 1, "alpha": 0.0, "beta": 1.0, "mode": "weighted"}
        return latents(steps_of(**settings, sdm_weight=weight))

    np.testing.assert_allclose(
        after(0.25), 0.75 * after(0.0) + 0.25 * after(1.0), rtol=1e-4, atol=1e-5
    )


def regional(sign):
    """Responds to its condition strongly on one half of the image and says so in its noise."""

    def denoiser(x, t, context):
        columns = jnp.arange(x.shape[2])
        half = (columns < 4) if sign < 0 else (columns >= 5)
        strength = 0.1 + 3 * half.astype(jnp.float32)
        return jnp.broadcast_to(
            sign * 10
            + strength[None, None, :, None] * context.mean(axis=(1, 2))[:, None, None, None],
            x.shape,
        )

    return denoiser


def test_fusion_takes_each_pixel_from_the_more_salient_model():
    steps = steps_of(num_steps=1, alpha=0.0, beta=1.0)
    contexts = jnp.arange(3.0)[:, None, None, None] * jnp.ones((3, 2, 5, 7))
    inputs = {"tdm": regional(-1), "sdm": regional(1), "contexts": contexts}

    state, trace = run(steps, **inputs, trace=True)

    for mode, half in (("tdm", slice(4)), ("sdm", slice(5, None))):
        alone = run(steps_of(num_steps=1, mode=mode), **inputs, trace=True)[0]
        np.testing.assert_allclose(state.x[:, :, half], alone.x[:, :, half], rtol=1e-5)
    np.testing.assert_array_equal(trace.sdm_weight[0, :, :, :4], 0)
    np.testing.assert_array_equal(trace.sdm_weight[0, :, :, 5:], 1)


def test_without_responses_equal_models_agree():
    """Where nothing is to be guided to, neither stages nor modes matter."""
    contexts = jnp.stack([CONTEXTS[1]] * 3)
    settings = ({}, {"alpha": 0.0, "beta": 1.0}, {"mode": "weighted"}, {"mode": "sdm"})

    expected = latents(steps_of(mode="tdm"), sdm=TDM, contexts=contexts)

    for changes in settings:
        result = latents(steps_of(**changes), sdm=TDM, contexts=contexts)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_trace():
    """The weight is that of the stage; saliencies are distributions, uniform where not asked."""
    steps = steps_of()

    state, trace = run(steps, trace=True)

    for column in trace[:3]:
        assert column.shape == (10, 2, 6, 9)
    assert trace.x0.shape == (10, 2, 6, 9, 4)
    for column in trace[:2]:
        np.testing.assert_allclose(column.sum(axis=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_array_equal(trace.sdm_weight[:2], 0)
    np.testing.assert_array_equal(trace.sdm_weight[5:], 1)
    assert set(np.unique(trace.sdm_weight[2:5])) == {0.0, 1.0}
    np.testing.assert_allclose(trace.tdm_saliency[5:], 1 / 54, rtol=1e-6)
    np.testing.assert_allclose(trace.sdm_saliency[:2], 1 / 54, rtol=1e-6)
    np.testing.assert_array_equal(
        trace.sdm_weight[2:5], trace.sdm_saliency[2:5] > trace.tdm_saliency[2:5]
    )
    np.testing.assert_array_equal(state.x, latents(steps))


def test_trace_ends_near_the_result():
    """The last noise leads to latents that are the result but for the noise that is left."""
    state, trace = run(steps_of(), trace=True)

    assert np.linalg.norm(trace.x0[-1] - state.x) < 0.2 * np.linalg.norm(state.x)


def test_trace_of_a_weighted_sum():
    _, trace = run(steps_of(mode="weighted", sdm_weight=0.25), trace=True)

    np.testing.assert_array_equal(trace.sdm_weight[2:5], 0.25)


def test_smoothing_matters():
    by_box, by_gaussian = (
        latents(steps_of(), smoothing=smoothing) for smoothing in ("box", "gaussian")
    )

    assert jnp.abs(by_box - by_gaussian).max() > 1e-3


def test_images_do_not_mix():
    steps = steps_of()

    before = latents(steps)
    after = latents(steps, x=X.at[0].add(1.0), contexts=CONTEXTS.at[:, 0].add(1.0))

    np.testing.assert_array_equal(before[1], after[1])
    assert jnp.abs(before[0] - after[0]).max() > 1e-2


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmsolver++"])
def test_the_table_may_be_executed_in_parts(solver):
    """Bit for bit: what a part leaves is all that the next one needs."""
    steps = steps_of(solver=solver, num_steps=9)
    state = init_state(X)

    for first in (0, 5):
        part = jax.tree.map(lambda column, i=first: column[i : i + 5], steps)
        state, _ = jitted(state, CONTEXTS, part, tdm=TDM, sdm=SDM)

    jax.tree.map(np.testing.assert_array_equal, state, run(steps)[0])


def test_numbers_compile_nothing():
    """One program for all borders, modes, weights, guidances and solvers of as many rows."""
    traces = []

    @jax.jit
    def run(steps, guidance):
        traces.append(steps)
        tdm, sdm = (guided(as_eps(model, ScheduleConfig()), guidance) for model in (TDM, SDM))
        return sample(tdm, sdm, init_state(X), CONTEXTS, steps)[0].x

    results = [
        run(steps_of(**settings), jnp.float32(guidance))
        for settings, guidance in (
            ({}, 5),
            ({}, 1),
            ({"alpha": 0.0, "beta": 1.0}, 5),
            ({"alpha": 0.5, "beta": 0.5}, 5),
            ({"fusion_start": 1, "fusion_end": 3}, 5),
            ({"mode": "weighted"}, 5),
            ({"mode": "weighted", "sdm_weight": 0.9}, 5),
            ({"mode": "delayed"}, 5),
            ({"mode": "tdm"}, 5),
            ({"mode": "sdm"}, 5),
            ({"solver": "dpmsolver++"}, 5),
            ({"solver": "pndm", "num_steps": 9}, 5),
        )
    ]

    assert len(traces) == 1
    assert run._cache_size() == 1
    for i, result in enumerate(results):
        for other in results[:i]:
            assert not np.array_equal(result, other)


def test_compiled_program_holds_each_network_once():
    """A loop with one conditional for each network, so that neither is computed for nothing."""
    inputs = init_state(X), CONTEXTS, steps_of()

    text = jitted.lower(*inputs, tdm=TDM, sdm=SDM).compile().as_text()

    conditionals = re.findall(r"= .* conditional\(.*", text)
    assert len(conditionals) == 2
    assert all("while/body" in line for line in conditionals)
    assert len(re.findall(r"= .* while\(", text)) == 1


class Deep:
    """A stand-in whose deep features hold half of its noise."""

    def __init__(self, weight):
        self.deep, self.top = stand_in(weight), stand_in(weight + 0.2)

    def with_features(self, x, t, context):
        features = self.deep(x, t, context)
        return self.from_features(x, t, context, features), features

    def from_features(self, x, t, context, features):
        return (self.top(x, t, context) + features) / 2

    def __call__(self, x, t, context):
        return self.with_features(x, t, context)[0]


DEEP_TDM, DEEP_SDM = Deep(0.7), Deep(1.3)


@functools.partial(jax.jit, static_argnames="trace")
def jitted_reusing(state, contexts, steps, trace=False):
    tdm, sdm = (guided_reusing(deep, ScheduleConfig(), GUIDANCE) for deep in (DEEP_TDM, DEEP_SDM))
    return sample(tdm, sdm, state, contexts, steps, trace=trace)


def init_reusing(features=0.0):
    features = jnp.full((2 * len(X), *X.shape[1:]), features)
    return init_state(X)._replace(features=(features, features))


def test_a_table_without_reuse_is_sampled_as_without_features():
    """Whatever the features are at first, as the first evaluation reuses none."""
    state, trace = jitted_reusing(init_reusing(jnp.nan), CONTEXTS, steps_of(), trace=True)
    expected, expected_trace = run(steps_of(), tdm=DEEP_TDM, sdm=DEEP_SDM, trace=True)

    np.testing.assert_allclose(state.x, expected.x, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), trace, expected_trace
    )


@pytest.mark.parametrize("mode", ["tdm", "sdm"])
def test_reused_features_are_those_of_the_last_whole_evaluation(mode):
    """Step by step in a loop of Python, every third one whole."""
    steps = steps_of(mode=mode, **{f"{mode}_cache_interval": 3})
    model = DEEP_TDM if mode == "tdm" else DEEP_SDM
    null, text, augmented = CONTEXTS
    pair = (null, text) if mode == "tdm" else (text, augmented)
    context = jnp.stack(pair, axis=1).reshape(-1, *text.shape[1:])

    state = init_state(X)
    for i in range(10):
        row = jax.tree.map(lambda column, i=i: column[i], steps.solver)
        doubled = jnp.repeat(state.x, 2, axis=0)
        t = jnp.full(len(doubled), row.t)
        if i % 3 == 0:
            eps, features = model.with_features(doubled, t, context)
        else:
            eps = model.from_features(doubled, t, context, features)
        eps = eps[::2] + GUIDANCE * (eps[1::2] - eps[::2])
        state = solver_step(state, eps, row)

    found = jitted_reusing(init_reusing(), CONTEXTS, steps)[0].x
    np.testing.assert_allclose(found, state.x, rtol=1e-4, atol=1e-5)
    assert (
        jnp.abs(found - jitted_reusing(init_reusing(), CONTEXTS, steps_of(mode=mode))[0].x).max()
        > 1e-2
    )


def test_patterns_of_reuse_compile_nothing_and_go_on_in_parts():
    settings = [{"tdm_cache_interval": 2}, {"sdm_cache_interval": 2}, {"sdm_cache_interval": 4}]
    tables = [steps_of(**each) for each in settings]
    before = jitted_reusing._cache_size()
    found = [jitted_reusing(init_reusing(), CONTEXTS, steps)[0] for steps in tables]
    assert jitted_reusing._cache_size() - before <= 1

    for i, a in enumerate(found):
        for b in found[:i]:
            assert jnp.abs(a.x - b.x).max() > 1e-3

    state: SolverState = init_reusing()
    for first in (0, 5):
        part = jax.tree.map(lambda column, i=first: column[i : i + 5], tables[1])
        state, _ = jitted_reusing(state, CONTEXTS, part)
    jax.tree.map(np.testing.assert_array_equal, state, found[1])


def test_noise_of_an_image_follows_from_its_key_alone():
    keys = jax.vmap(jax.random.key)(jnp.arange(4))

    together, alone = initial_noise(keys, 16, 24), initial_noise(keys[2:3], 16, 24)

    assert together.shape == (4, 16, 24, 4)
    np.testing.assert_array_equal(together[2:3], alone)
    assert len(np.unique(together)) > 0.99 * together.size
    np.testing.assert_allclose(together.mean(), 0, atol=0.05)
    np.testing.assert_allclose(together.std(), 1, atol=0.05)


def v_of(predicts_eps):
    """The same denoiser, with v as its output: sqrt(a) eps - sqrt(1 - a) x_0."""

    def predicts_v(x, t, context):
        level = jnp.asarray(alphas_cumprod(ScheduleConfig()), jnp.float32)[t][:, None, None, None]
        alpha, sigma = jnp.sqrt(level), jnp.sqrt(1 - level)
        eps = predicts_eps(x, t, context)
        x0 = (x - sigma * eps) / alpha
        return alpha * eps - sigma * x0

    return predicts_v


V_TDM, V_SDM = v_of(TDM), v_of(SDM)


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmsolver++"])
def test_networks_that_predict_v_are_sampled_as_those_that_predict_noise(solver):
    # One model at a time: a pixel of the mask that flips is no rounding error.
    for mode in ("sdm", "weighted"):
        steps = steps_of(solver=solver, mode=mode, num_steps=9)
        expected, trace = run(steps, trace=True)
        found, seen = run(steps, tdm=V_TDM, sdm=V_SDM, trace=True, prediction_type="v_prediction")
        scale = np.abs(expected.x).max()
        np.testing.assert_allclose(found.x, expected.x, atol=1e-4 * scale)
        np.testing.assert_allclose(seen.sdm_saliency, trace.sdm_saliency, rtol=1e-4)
        np.testing.assert_allclose(seen.x0, trace.x0, atol=1e-4 * np.abs(trace.x0).max())
    assert np.abs(latents(steps, tdm=V_TDM, sdm=V_SDM) - expected.x).max() > 0.1 * scale
