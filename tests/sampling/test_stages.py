import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.errors import InputError
from fd_jax.sampling.solvers import init_state, solver_step
from fd_jax.sampling.stages import (
    AUGMENTED,
    FUSION,
    NULL,
    SCENE,
    SUBJECT,
    TEXT,
    SamplerConfig,
    join_steps,
    make_steps,
    pad_steps,
)
from fd_jax.schedule import ScheduleConfig
from tests.helpers.modules import normal


def steps_of(**settings):
    return make_steps(SamplerConfig(**settings), ScheduleConfig())


def counts(steps):
    """Evaluations in each stage."""
    return np.bincount(steps.stage, minlength=3).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [15, 15, 20]),  # the paper's alpha and beta of 50 DDIM steps
        ({"solver": "pndm"}, [16, 15, 20]),  # what the released code does with 15 and 30
        ({"solver": "dpmsolver++", "num_steps": 20}, [6, 6, 8]),
        ({"alpha": 0.2, "beta": 0.8}, [10, 30, 10]),
        ({"alpha": 0.4, "beta": 0.4}, [20, 0, 30]),  # no fusion
        ({"alpha": 0.0}, [0, 30, 20]),  # no scene
        ({"beta": 1.0}, [15, 35, 0]),  # no subject
        ({"alpha": 0.0, "beta": 0.0}, [0, 0, 50]),
        ({"alpha": 1.0, "beta": 1.0}, [50, 0, 0]),
        ({"alpha": 0.0, "beta": 1.0}, [0, 50, 0]),
        ({"alpha": 1.0, "beta": 1.0, "solver": "pndm"}, [51, 0, 0]),
        ({"num_steps": 1}, [0, 1, 0]),
        ({"num_steps": 1, "solver": "pndm"}, [0, 1, 0]),
        ({"num_steps": 5, "alpha": 0.5, "beta": 0.7}, [3, 1, 1]),  # halves are rounded up
        ({"fusion_start": 16, "fusion_end": 31}, [16, 15, 19]),
        ({"fusion_start": 16, "fusion_end": 31, "solver": "pndm"}, [16, 15, 20]),
        ({"fusion_start": 0, "fusion_end": 0}, [0, 0, 50]),
        ({"fusion_start": 0, "fusion_end": 50}, [0, 50, 0]),
        ({"fusion_start": 51, "fusion_end": 51, "solver": "pndm"}, [51, 0, 0]),
        ({"fusion_start": 7}, [7, 23, 20]),  # the other border follows from beta
        ({"fusion_end": 49}, [15, 34, 1]),
    ],
)
def test_borders(settings, expected):
    steps = steps_of(**settings)

    assert counts(steps) == expected
    assert (np.diff(steps.stage) >= 0).all()


def test_shares_are_the_borders_of_the_released_code():
    """With its solver, 0.3 and 0.6 of 50 steps are the first evaluations after 15 and 30."""
    shares = steps_of(solver="pndm", alpha=0.3, beta=0.6)
    borders = steps_of(solver="pndm", fusion_start=16, fusion_end=31)

    jax.tree.map(np.testing.assert_array_equal, shares, borders)


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmsolver++"])
@pytest.mark.parametrize("num_steps", [2, 3, 7, 20])
def test_borders_scale_with_the_steps(solver, num_steps):
    stage = steps_of(solver=solver, num_steps=num_steps, alpha=0.25, beta=0.75).stage

    for border, share in ((FUSION, 0.25), (SUBJECT, 0.75)):
        repeats = solver == "pndm"  # one timestep is evaluated twice
        assert abs(np.sum(stage < border) - share * num_steps) <= 0.5 + repeats


def test_columns_of_saliency_adaptive_fusion():
    steps = steps_of(num_steps=10)

    np.testing.assert_array_equal(steps.stage, [SCENE] * 3 + [FUSION] * 3 + [SUBJECT] * 4)
    np.testing.assert_array_equal(steps.use_tdm, [1] * 6 + [0] * 4)
    np.testing.assert_array_equal(steps.use_sdm, [0] * 3 + [1] * 7)
    np.testing.assert_array_equal(steps.use_snf, [0] * 3 + [1] * 3 + [0] * 4)
    np.testing.assert_array_equal(steps.sdm_weight[[0, 2, 6, 9]], [0, 0, 1, 1])
    np.testing.assert_array_equal(steps.sdm_uncond, TEXT)
    np.testing.assert_array_equal(steps.sdm_cond, AUGMENTED)


def test_columns_of_a_weighted_sum():
    steps, snf = steps_of(num_steps=10, mode="weighted", sdm_weight=0.25), steps_of(num_steps=10)

    np.testing.assert_array_equal(steps.sdm_weight, [0] * 3 + [0.25] * 3 + [1] * 4)
    assert not steps.use_snf.any()
    for name in ("stage", "use_tdm", "use_sdm", "sdm_uncond", "sdm_cond"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(snf, name))


def test_columns_of_delayed_conditioning():
    """The SDM alone: guided from the empty prompt, to the text, then to its subjects."""
    steps = steps_of(num_steps=10, mode="delayed")

    assert not steps.use_tdm.any()
    assert steps.use_sdm.all()
    assert not steps.use_snf.any()
    np.testing.assert_array_equal(steps.sdm_weight, 1)
    np.testing.assert_array_equal(steps.sdm_uncond, NULL)
    np.testing.assert_array_equal(steps.sdm_cond, [TEXT] * 3 + [AUGMENTED] * 7)


@pytest.mark.parametrize("mode", ["tdm", "sdm"])
def test_columns_of_one_model_alone(mode):
    steps = steps_of(num_steps=10, mode=mode)

    assert (steps.use_tdm == (mode == "tdm")).all()
    assert (steps.use_sdm == (mode == "sdm")).all()
    assert not steps.use_snf.any()
    np.testing.assert_array_equal(steps.sdm_weight, float(mode == "sdm"))
    np.testing.assert_array_equal(steps.sdm_uncond, TEXT)
    np.testing.assert_array_equal(steps.sdm_cond, AUGMENTED)


@pytest.mark.parametrize("mode", ["snf", "weighted", "delayed", "tdm", "sdm"])
def test_modes_differ_in_numbers_alone(mode):
    """So that one program executes all of them."""

    def signature(steps):
        return jax.tree.map(lambda column: (column.shape, column.dtype.name), steps)

    assert signature(steps_of(mode=mode)) == signature(steps_of())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 2 * 15 + 4 * 15 + 2 * 20),
        ({"solver": "pndm"}, 2 * 16 + 4 * 15 + 2 * 20),
        ({"mode": "weighted"}, 130),
        ({"mode": "delayed"}, 100),
        ({"mode": "tdm"}, 100),
        ({"mode": "sdm"}, 100),
        ({"alpha": 0.0, "beta": 1.0}, 200),
        ({"alpha": 0.5, "beta": 0.5}, 100),
    ],
)
def test_number_of_evaluations(settings, expected):
    assert steps_of(**settings).num_evaluations == expected


WRONG = [
    *[("solver", value) for value in ("euler", "DDIM", "", None, 3)],
    *[("mode", value) for value in ("fused", None, True)],
    *[("smoothing", value) for value in ("median", None, 1)],
    *[("num_steps", value) for value in (0, -1, 2.0, math.nan, "50", None, True)],
    *[
        (name, value)
        for name in ("alpha", "beta")
        for value in (-0.1, 1.1, math.nan, math.inf, "0.3", None, True)
    ],
    *[
        (name, value)
        for name in ("fusion_start", "fusion_end")
        for value in (-1, 51, 10**9, 3.0, math.nan, "3", False)
    ],
    *[("guidance_scale", value) for value in (-1.0, math.nan, math.inf, "5", None, True)],
    *[("sdm_weight", value) for value in (-0.1, 1.1, math.nan, "0.5", None, False)],
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(InputError, match=f"{name} is .*expected"):
        make_steps(unchecked(**{name: value}), ScheduleConfig())


def unchecked(**settings):
    """As outside of tests, where nothing but `SamplerConfig` itself looks at the types."""
    config = object.__new__(SamplerConfig)
    for field in dataclasses.fields(SamplerConfig):
        object.__setattr__(config, field.name, settings.get(field.name, field.default))
    config.__post_init__()
    return config


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.float64])
def test_numbers_of_any_kind_will_do(kind):
    shares = {name: kind(value) for name, value in (("alpha", 0), ("beta", 1))}

    config = unchecked(
        **shares, guidance_scale=kind(7), fusion_start=np.int64(3), sdm_weight=kind(1)
    )

    assert counts(make_steps(config, ScheduleConfig())) == [3, 47, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.7, "beta": 0.3}, "alpha is 0.7 and beta is 0.3, expected .*alpha <= beta"),
        ({"fusion_start": 30, "fusion_end": 20}, "begin at evaluation 30 and end before 20"),
        ({"fusion_start": 31}, "begin at evaluation 31 and end before 30"),
        ({"fusion_end": 14}, "begin at evaluation 15 and end before 14"),
        ({"num_steps": 1001}, r"num_steps is 1001, expected 1\.\.1000"),
        ({"fusion_end": 51}, r"fusion_end is 51, expected 0\.\.50"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        steps_of(**settings)


@pytest.mark.parametrize("value", [0.0, 1.0, 7.5, 1000.0])
def test_any_guidance_from_zero_up_will_do(value):
    assert SamplerConfig(guidance_scale=value).guidance_scale == value


def test_settings_are_documented():
    """Each has a default, so that the command line can show it."""
    SamplerConfig()

    for field in dataclasses.fields(SamplerConfig):
        assert field.default is not dataclasses.MISSING


@jax.jit
def scan(x, rows):
    def body(state, row):
        return solver_step(state, jnp.sin(state.x), row), None

    return jax.lax.scan(body, init_state(x), rows)[0]


@pytest.mark.parametrize("solver", ["ddim", "pndm", "dpmsolver++"])
def test_padding_leaves_latents_as_they_are(solver):
    steps, x = steps_of(num_steps=6, solver=solver), normal((2, 3, 5, 4))

    whole, padded = (scan(x, table.solver) for table in (steps, pad_steps(steps, 11)))

    np.testing.assert_allclose(padded.x, whole.x, rtol=1e-6)
    np.testing.assert_array_equal(padded.history, scan(x, pad_steps(steps, 7).solver).history)


def test_every_other_evaluation_of_a_model_reuses_its_deep_features():
    """Counted from the model's first evaluation; the other model is left as it is."""
    steps = steps_of(num_steps=10, tdm_cache_interval=2)  # TDM in 0..5, SDM in 3..9
    np.testing.assert_array_equal(steps.reuse_tdm, [0, 1] * 3 + [0] * 4)
    assert not steps.reuse_sdm.any()

    steps = steps_of(num_steps=10, sdm_cache_interval=3)
    np.testing.assert_array_equal(steps.reuse_sdm, [0] * 3 + [0, 1, 1, 0, 1, 1, 0])
    assert not steps.reuse_tdm.any()
    assert steps.reuses_features

    assert not steps_of(num_steps=10).reuses_features


def test_features_of_another_context_are_not_reused():
    """Of the SDM, which gets its subjects after the third of ten steps."""
    steps = steps_of(num_steps=10, mode="delayed", sdm_cache_interval=2)

    np.testing.assert_array_equal(steps.reuse_sdm, [0, 1, 0, 0, 1, 0, 1, 0, 1, 0])


def test_joined_tables_reuse_features_together():
    tables = [
        steps_of(num_steps=10, tdm_cache_interval=2, sdm_cache_interval=2, alpha=alpha)
        for alpha in (0.2, 0.4)
    ]
    joined = join_steps(tables)
    np.testing.assert_array_equal(joined.reuse_tdm, tables[0].reuse_tdm)
    np.testing.assert_array_equal(joined.reuse_sdm, tables[0].reuse_sdm)

    with pytest.raises(InputError, match="deep features of the SDM at different evaluations"):
        join_steps([*tables, steps_of(num_steps=10, sdm_cache_interval=2, tdm_cache_interval=2)])
    with pytest.raises(InputError, match="deep features of the TDM"):
        join_steps([steps_of(num_steps=10), steps_of(num_steps=10, tdm_cache_interval=2)])


def test_padding_evaluates_nothing():
    steps = steps_of(num_steps=6)
    padded = pad_steps(steps, 10)

    assert padded.num_evaluations == steps.num_evaluations
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:6], b), padded, steps)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.dtype, b.dtype), padded, steps)
    assert len(padded.stage) == 10
    for row in range(6, 10):
        assert not any(c[row] for c in (padded.use_tdm, padded.use_sdm, padded.use_snf))
        state = init_state(normal((2, 3, 5, 4)))
        after = solver_step(state, 9 * state.x, jax.tree.map(lambda c, i=row: c[i], padded.solver))
        np.testing.assert_array_equal(after.x, state.x)


def test_a_full_table_needs_no_padding():
    steps = steps_of(num_steps=6)

    jax.tree.map(np.testing.assert_array_equal, pad_steps(steps, 6), steps)
