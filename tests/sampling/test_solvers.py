import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.sampling import solvers
from fd_jax.schedule import ScheduleConfig, alphas_cumprod

GOLDENS = pathlib.Path(os.environ.get("FD_GOLDENS", pathlib.Path(__file__).parents[1] / "goldens"))

# Final latents of diffusers 0.35.2 (torch 2.13.0, float32): DDIMScheduler (clip_sample off),
# PNDMScheduler (skip_prk_steps on) and DPMSolverMultistepScheduler with its defaults, on
# x = linspace(-1.5, 2, 8), where the predicted noise is 0.3 * x + 0.1 * sin(t / 100). LCMScheduler
# is that of diffusers 0.42.1 (torch 2.14.1), with the noise that the key of seed 0 draws here.
DIFFUSERS = json.loads(pathlib.Path(__file__).with_name("diffusers_solvers.json").read_text())

SHAPE = 2, 5, 3, 4
# PNDM with one step less makes as many evaluations as the others.
EIGHT_EVALUATIONS = {"ddim": 8, "pndm": 7, "dpmsolver++": 8}
# Those that follow the flow; a consistency model's adds noise on the way.
every_solver = pytest.mark.parametrize("name", EIGHT_EVALUATIONS)


def pick(rows, i):
    return jax.tree.map(lambda column: column[i], rows)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


@functools.partial(jax.jit, static_argnums=0)
def scan(denoiser, x, rows, keys=None):
    """Last state and every row's x; `denoiser` takes x and a row."""

    def body(state, row):
        state = solvers.solver_step(state, denoiser(state.x, row), row)
        return state, state.x

    return jax.lax.scan(body, solvers.init_state(x, keys), rows)


def relative_error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("file", "name"),
    [("sample_ddim", "ddim"), ("sample_ddim_one", "ddim"), ("sample_pndm", "pndm")],
)
def test_follows_the_released_code(file, name):
    golden = np.load(GOLDENS / f"{file}.npz")
    rows = solvers.make_solver_rows(name, ScheduleConfig(), int(golden["steps"]))
    eps = golden["eps"].transpose(0, 2, 3, 1)[:, None]
    latents = golden["latents"].transpose(0, 2, 3, 1)

    def body(state, row_and_eps):
        row, eps = row_and_eps
        state = solvers.solver_step(state, eps, row)
        return state, state.x[0]

    x = jnp.asarray(golden["init_latents"].transpose(0, 2, 3, 1))
    _, xs = jax.lax.scan(body, solvers.init_state(x), (rows, eps))

    np.testing.assert_array_equal(rows.t, golden["timesteps"])
    assert max(map(relative_error, xs, latents)) < 1e-5


@pytest.mark.parametrize(
    "case", DIFFUSERS["cases"], ids=lambda case: f"{case['solver']}-{case['num_steps']}"
)
def test_agrees_with_diffusers(case):
    rows = solvers.make_solver_rows(case["solver"], ScheduleConfig(), case["num_steps"])
    x = jnp.linspace(-1.5, 2, 8).reshape(1, 1, 4, 2)

    keys = jax.random.key(0)[None]
    state, _ = scan(lambda x, row: 0.3 * x + 0.1 * jnp.sin(row.t / 100), x, rows, keys)

    np.testing.assert_array_equal(rows.t, case["timesteps"])
    assert relative_error(state.x.ravel(), np.asarray(case["latents"])) < 1e-5


@every_solver
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 20])
def test_true_noise_leads_back_to_the_image(name, num_steps):
    """Every solver is exact, at each row, where the denoiser is."""
    rows = solvers.make_solver_rows(name, ScheduleConfig(set_alpha_to_one=True), num_steps)
    x0, eps = normal(0), normal(1)

    state, xs = scan(lambda x, row: eps, rows.alpha[0] * x0 + rows.sigma[0] * eps, rows)

    np.testing.assert_allclose(state.x, x0, atol=5e-5)
    for i, x in enumerate(xs[:-1]):
        row = pick(rows, i + 1)
        np.testing.assert_allclose(x, row.alpha * x0 + row.sigma * eps, atol=5e-5)


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_the_last_step_ends_at_the_first_level(name):
    """With `set_alpha_to_one` off a little of the noise stays."""
    config = ScheduleConfig(beta_start=0.1, beta_end=0.2, num_train_timesteps=20)
    rows = solvers.make_solver_rows(name, config, 6)
    x0, eps = normal(0), normal(1)

    state, _ = scan(lambda x, row: eps, rows.alpha[0] * x0 + rows.sigma[0] * eps, rows)

    np.testing.assert_allclose(state.x, 0.9**0.5 * x0 + 0.1**0.5 * eps, atol=5e-5)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("pndm", 2), ("dpmsolver++", 2)])
def test_errors_fall_with_the_order(name, order):
    """Against the exact flow of normally distributed images, x ~ sqrt(alpha^2 s^2 + sigma^2)."""
    # No rounding of the timesteps. Only half of the way: the last step of DPM-Solver++ is
    # first-order, and that of the others is shorter than a step.
    config = ScheduleConfig(num_train_timesteps=2**12 + 1, steps_offset=0, beta_start=5e-5)

    def scale(row):
        return jnp.sqrt((0.5 * row.alpha) ** 2 + row.sigma**2)

    def error(num_steps):
        rows = solvers.make_solver_rows(name, config, num_steps)
        middle = int(np.argmax(rows.t <= 2**11))
        _, xs = scan(lambda x, row: row.sigma / scale(row) ** 2 * x, jnp.ones((1, 1, 1, 1)), rows)
        want = scale(pick(rows, middle)) / scale(pick(rows, 0))
        return abs(xs[middle - 1].item() - want)

    assert error(8) / error(32) > 0.6 * 4**order


def test_solvers_share_one_program():
    traces = []

    def denoiser(x, row):
        traces.append(row)
        return 0.5 * x

    for name, num_steps in EIGHT_EVALUATIONS.items():
        for config in (ScheduleConfig(), ScheduleConfig(beta_schedule="linear", steps_offset=0)):
            scan(denoiser, jnp.ones(SHAPE), solvers.make_solver_rows(name, config, num_steps))

    assert len(traces) == 1


@every_solver
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_rows(name, num_steps):
    rows = solvers.make_solver_rows(name, ScheduleConfig(), num_steps)

    n = num_steps + (name == "pndm" and num_steps > 1)
    kinds = {"t": np.int32, "step_index": np.int32, "push": np.bool_, "restart": np.bool_}
    for column, array in rows._asdict().items():
        assert array.shape == ((n, 4) if column == "history_weights" else (n,))
        assert array.dtype == kinds.get(column, np.float32)
        assert np.isfinite(array).all()
    np.testing.assert_array_equal(np.unique(rows.step_index), np.arange(num_steps))
    assert (np.diff(rows.step_index) >= 0).all()
    np.testing.assert_array_equal(np.diff(rows.t) == 0, np.diff(rows.step_index) == 0)
    np.testing.assert_allclose(rows.alpha**2, alphas_cumprod(ScheduleConfig())[rows.t], rtol=1e-6)
    np.testing.assert_allclose(rows.alpha**2 + rows.sigma**2, 1, rtol=1e-6)


def test_pndm_evaluates_its_second_timestep_twice():
    rows = solvers.make_solver_rows("pndm", ScheduleConfig(), 8)

    np.testing.assert_array_equal(rows.t, [876, 751, 751, 626, 501, 376, 251, 126, 1])
    np.testing.assert_array_equal(rows.step_index, [0, 1, 1, 2, 3, 4, 5, 6, 7])
    np.testing.assert_array_equal(rows.restart, np.arange(9) == 1)
    np.testing.assert_array_equal(rows.push, np.arange(9) != 1)


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_other_solvers_evaluate_each_timestep_once(name):
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 8)

    np.testing.assert_array_equal(rows.step_index, np.arange(8))
    assert rows.push.all()
    assert not rows.restart.any()


@every_solver
def test_history_holds_the_last_three_predictions(name):
    """Newest first; of noise, or of clean latents. PNDM's second evaluation is not among them."""
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 6)
    state, pushed = solvers.init_state(normal(0)), []

    for i in range(len(rows.t)):
        row, eps = pick(rows, i), normal(i + 1)
        if not (name == "pndm" and i == 1):
            is_clean = name == "dpmsolver++"
            pushed.insert(0, solvers.predict_x0(state.x, eps, row) if is_clean else eps)
        before, state = state, solvers.solver_step(state, eps, row)

        np.testing.assert_array_equal(state.x_prev, before.x)
        want = [*pushed[:3], *jnp.zeros((3, *SHAPE))][:3]
        np.testing.assert_allclose(state.history, np.stack(want), rtol=1e-4, atol=1e-4)


def test_restart_takes_the_last_step_back():
    """PNDM's second row ignores where the first one went, except for the noise found there."""
    rows = solvers.make_solver_rows("pndm", ScheduleConfig(), 5)
    state = solvers.solver_step(solvers.init_state(normal(0)), normal(1), pick(rows, 0))
    elsewhere = state._replace(x=normal(2))

    x, x_elsewhere = (
        solvers.solver_step(start, normal(3), pick(rows, 1)).x for start in (state, elsewhere)
    )

    np.testing.assert_array_equal(x, x_elsewhere)


@every_solver
def test_images_do_not_mix(name):
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 5)
    x = normal(0)

    def denoiser(x, row):
        return jnp.tanh(x)

    together, _ = scan(denoiser, x, rows)
    alone, _ = scan(denoiser, x[1:], rows)

    np.testing.assert_allclose(together.x[1:], alone.x, rtol=1e-5)


@every_solver
def test_state_stays_float32(name):
    """A bfloat16 prediction is cast before any arithmetic."""
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 5)
    eps = normal(1).astype(jnp.bfloat16)

    low, _ = scan(lambda x, row: eps, normal(0), rows)
    high, _ = scan(lambda x, row: eps.astype(jnp.float32), normal(0), rows)

    assert {array.dtype for array in low if array is not None} == {np.dtype(np.float32)}
    np.testing.assert_allclose(low.x, high.x, rtol=1e-6)
    from_low = solvers.init_state(normal(0).astype(jnp.bfloat16))
    assert {array.dtype for array in from_low if array is not None} == {np.dtype(np.float32)}


@every_solver
def test_predicts_the_clean_latents(name):
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 4)
    x0, eps = normal(0), normal(1)

    for i in range(len(rows.t)):
        row = pick(rows, i)
        got = solvers.predict_x0(row.alpha * x0 + row.sigma * eps, eps, row)
        np.testing.assert_allclose(got, x0, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "num_steps", "message"),
    [
        (
            "euler",
            8,
            r"solver is 'euler', expected one of .*'ddim', 'dpmsolver\+\+', 'lcm', 'pndm'",
        ),
        ("ddim", 0, "num_steps is 0, expected at least 1"),
        ("pndm", -3, "num_steps is -3, expected at least 1"),
        ("ddim", 1001, r"num_steps is 1001, expected 1\.\.1000"),
        ("pndm", 1001, r"num_steps is 1001, expected 1\.\.1000"),
        ("ddim", 1000, "first timestep is 1000 for 1000 steps .*, expected less than 1000"),
        ("dpmsolver++", 1000, r"num_steps is 1000, expected 1\.\.999"),
        ("lcm", 51, r"num_steps is 51, expected 1\.\.50 of a consistency model"),
    ],
)
def test_refuses_what_the_schedule_has_no_room_for(name, num_steps, message):
    with pytest.raises(ValueError, match=message):
        solvers.make_solver_rows(name, ScheduleConfig(), num_steps)


@every_solver
def test_takes_as_many_steps_as_the_schedule_has_room_for(name):
    rows = solvers.make_solver_rows(name, ScheduleConfig(), 999)

    assert rows.t.max() == 999
    assert len(np.unique(rows.t)) == 999


def test_wrong_shapes_are_refused():
    row = pick(solvers.make_solver_rows("ddim", ScheduleConfig(), 3), 0)
    with pytest.raises(Exception, match="b h w c"):
        solvers.solver_step(solvers.init_state(jnp.ones(SHAPE)), jnp.ones((5, 3, 4)), row)


# Consistency models.


@pytest.mark.parametrize(
    ("num_steps", "timesteps"),
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 499, 259]),
        (8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_consistency_sampling(num_steps, timesteps):
    """Each step predicts the image and adds new noise, the last one none: Algorithm 3 of LCM."""
    rows = solvers.make_solver_rows("lcm", ScheduleConfig(), num_steps)
    np.testing.assert_array_equal(rows.t, timesteps)
    keys = jax.vmap(jax.random.key)(jnp.arange(SHAPE[0]))
    level = alphas_cumprod(ScheduleConfig())[timesteps]

    def denoiser(x, t):
        return 0.3 * x + 0.1 * np.sin(t / 100)

    state, x = solvers.init_state(normal(0), keys), np.asarray(normal(0), np.float64)
    for i, t in enumerate(timesteps):
        x0 = (x - np.sqrt(1 - level[i]) * denoiser(x, t)) / np.sqrt(level[i])
        boundary = 0.25 / ((10 * t) ** 2 + 0.25)
        x = boundary * x + 10 * t / np.sqrt((10 * t) ** 2 + 0.25) * x0
        if i + 1 < num_steps:
            drawn = [jax.random.normal(jax.random.fold_in(k, i + 1), SHAPE[1:]) for k in keys]
            x = np.sqrt(level[i + 1]) * x + np.sqrt(1 - level[i + 1]) * np.stack(drawn)
        row = pick(rows, i)
        state = solvers.solver_step(state, denoiser(state.x, row.t), row)
        np.testing.assert_allclose(state.x, x, rtol=2e-5, atol=2e-5)


def test_other_solvers_add_no_noise():
    """With keys or without, to the bit."""
    keys = jax.vmap(jax.random.key)(jnp.arange(SHAPE[0]))
    for name in EIGHT_EVALUATIONS:
        rows = solvers.make_solver_rows(name, ScheduleConfig(), 3)
        with_keys, without = solvers.init_state(normal(0), keys), solvers.init_state(normal(0))
        for i in range(len(rows.t)):
            row = pick(rows, i)
            with_keys = solvers.solver_step(with_keys, normal(i), row)
            without = solvers.solver_step(without, normal(i), row)
            np.testing.assert_array_equal(with_keys.x, without.x)
