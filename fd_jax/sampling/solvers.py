"""Solvers as data: tables of linear multistep rows that one scanned step executes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int32, Int64, Key

from fd_jax.errors import InputError
from fd_jax.schedule import ScheduleConfig, alphas_cumprod, final_alpha_cumprod

Latents = Float32[Array, "b h w c"]
Features = Float[Array, "evaluations h w f"]
Timesteps = Int64[np.ndarray, " n"]
Levels = Float64[np.ndarray, " n"]  # alphas_cumprod of each of n samples

# Adams-Bashforth weights of the newest four predictions, a row for each number of predictions. The
# second row is an exception: PNDM averages the first two predictions.
_ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [1 / 2, 1 / 2, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


class SolverRows(NamedTuple):
    """One row per UNet evaluation, noisiest first. Inside the scan the leading axis is gone.

    NumPy arrays as returned by `make_solver_rows`, JAX arrays inside the scan.
    """

    t: Int32[Array | np.ndarray, "*n"]  # timestep given to the UNet
    step_index: Int32[Array | np.ndarray, "*n"]  # solver step of the evaluation, 0..num_steps - 1
    alpha: Float32[Array | np.ndarray, "*n"]  # x = alpha * x_0 + sigma * noise before this row
    sigma: Float32[Array | np.ndarray, "*n"]
    x_weight: Float32[Array | np.ndarray, "*n"]  # prediction p = x_weight * x + eps_weight * eps
    eps_weight: Float32[Array | np.ndarray, "*n"]
    push: Bool[Array | np.ndarray, "*n"]  # whether p joins the history
    restart: Bool[Array | np.ndarray, "*n"]  # whether the step starts from x_prev, not x
    base_weight: Float32[Array | np.ndarray, "*n"]  # weight of x, or of x_prev in a restart
    history_weights: Float32[Array | np.ndarray, "*n 4"]  # of p and the three before it
    noise_weight: Float32[Array | np.ndarray, "*n"]  # of new noise


class SolverState(NamedTuple):
    """State that the scan carries from row to row."""

    x: Latents
    x_prev: Latents  # x before the last step
    history: Float32[Array, "3 b h w c"]  # predictions of earlier rows, newest first
    keys: Key[Array, " b"] | None = None  # of the noise that is added on the way, if it is
    # Deep features of TDM and SDM, both evaluations of each image, if rows reuse them.
    features: tuple[Features, Features] | None = None


def init_state(x: Float[Array, "b h w c"], keys: Key[Array, " b"] | None = None) -> SolverState:
    """Returns the state before the first row, from noise of standard deviation 1.

    Args:
        x: The noise.
        keys: A key for each image. Only solvers that add no noise do without.
    """
    x = x.astype(jnp.float32)
    return SolverState(x, x, jnp.zeros((3, *x.shape), jnp.float32), keys)


def solver_step(state: SolverState, eps: Float[Array, "b h w c"], row: SolverRows) -> SolverState:
    """Executes one row, whichever solver it is from, in float32.

        p = x_weight * x + eps_weight * eps
        x <- base_weight * (x_prev if restart else x) + history_weights . [p, *history]
             + noise_weight * noise

    Args:
        state: Latents and earlier predictions.
        eps: Noise predicted for `state.x` at `row.t`.
        row: Row of `make_solver_rows`, its leading axis gone.
    """
    p = row.x_weight * state.x + row.eps_weight * eps.astype(jnp.float32)
    base = jnp.where(row.restart, state.x_prev, state.x)
    weights = row.history_weights
    # Written out: a contraction would run in bfloat16 on a TPU.
    x: Any = row.base_weight * base + weights[0] * p
    for k in range(3):
        x = x + weights[k + 1] * state.history[k]
    if state.keys is not None:
        x = x + row.noise_weight * _noise(state, row)
    pushed = jnp.concatenate([p[None], state.history[:2]])
    history = jnp.where(row.push, pushed, state.history)
    return state._replace(x=x, x_prev=state.x, history=history)


def _noise(state: SolverState, row: SolverRows) -> Latents:
    """Draws each image's noise of a row from its own key, where the row has any."""

    def draw() -> Latents:
        def one(key: Key[Array, ""]) -> Float32[Array, "h w c"]:
            # The key itself draws the noise that sampling starts from.
            own = jax.random.fold_in(key, row.step_index + 1)
            return jax.random.normal(own, state.x.shape[1:], jnp.float32)

        keys: Any = state.keys  # the caller asks for noise only where there are keys
        return jax.vmap(one)(keys)

    return jax.lax.cond(row.noise_weight > 0, draw, lambda: jnp.zeros_like(state.x))


def v_to_eps(
    x: Float[Array, "b h w c"], v: Float[Array, "b h w c"], row: SolverRows
) -> Float[Array, "b h w c"]:
    """Returns the noise that v = alpha * eps - sigma * x_0 implies for `x` before this row.

    Appendix D of arXiv:2202.00512, with x = alpha * x_0 + sigma * eps.
    """
    return jnp.asarray(row.alpha * v + row.sigma * x)


def predict_x0(
    x: Float[Array, "b h w c"], eps: Float[Array, "b h w c"], row: SolverRows
) -> Latents:
    """Returns the clean latents that `eps` implies for `x` before this row."""
    return (x.astype(jnp.float32) - row.sigma * eps.astype(jnp.float32)) / row.alpha


def _leading_timesteps(config: ScheduleConfig, num_steps: int) -> Timesteps:
    """Returns multiples of a stride plus an offset: "leading" in Table 2 of arXiv:2305.08891."""
    if num_steps > config.num_train_timesteps:
        raise InputError(f"num_steps is {num_steps}, expected 1..{config.num_train_timesteps}")
    stride = config.num_train_timesteps // num_steps
    t = np.arange(num_steps)[::-1] * stride + config.steps_offset
    if t[0] >= config.num_train_timesteps:
        raise InputError(
            f"first timestep is {t[0]} for {num_steps} steps and steps_offset "
            f"{config.steps_offset}, expected less than {config.num_train_timesteps}"
        )
    return t


def _leading_levels(config: ScheduleConfig, num_steps: int) -> tuple[Timesteps, Levels, Levels]:
    """Returns timesteps, and alphas_cumprod before and after each step."""
    t = _leading_timesteps(config, num_steps)
    t_next = t - config.num_train_timesteps // num_steps
    level = alphas_cumprod(config)
    next_level = np.where(t_next >= 0, level[t_next.clip(0)], final_alpha_cumprod(config))
    return t, level[t], next_level


def _transfer(level: Levels, next_level: Levels) -> tuple[Levels, Levels]:
    """Returns the weights of x and of constant noise that take x to the next level.

    Eq. 12 of arXiv:2010.02502 with its sigma_t = 0; Eq. 9 of arXiv:2202.09778 is the same.
    """
    base_weight = np.sqrt(next_level / level)
    return base_weight, np.sqrt(1 - next_level) - base_weight * np.sqrt(1 - level)


def _make_rows(*, t: Timesteps, level: Levels, **columns: np.ndarray) -> SolverRows:
    """Casts columns; the defaults make a history of `eps`, with one evaluation a step."""
    ones = np.ones(len(t))
    defaults = {
        "t": t,
        "step_index": np.arange(len(t)),
        "alpha": np.sqrt(level),
        "sigma": np.sqrt(1 - level),
        "x_weight": 0 * ones,
        "eps_weight": ones,
        "push": ones,
        "restart": 0 * ones,
        "noise_weight": 0 * ones,
    }
    kinds = {"t": np.int32, "step_index": np.int32, "push": np.bool_, "restart": np.bool_}
    return SolverRows(
        **{
            name: column.astype(kinds.get(name, np.float32))
            for name, column in (defaults | columns).items()
        }
    )


def _make_ddim_rows(config: ScheduleConfig, num_steps: int) -> SolverRows:
    """DDIM without noise (eta 0), arXiv:2010.02502."""
    t, level, next_level = _leading_levels(config, num_steps)
    base_weight, noise_weight = _transfer(level, next_level)
    return _make_rows(
        t=t,
        level=level,
        base_weight=base_weight,
        history_weights=noise_weight[:, None] * _ADAMS_BASHFORTH[:1],
    )


def _make_pndm_rows(config: ScheduleConfig, num_steps: int) -> SolverRows:
    """Pseudo linear multistep (PLMS) variant of PNDM, arXiv:2202.09778.

    As in latent diffusion, the Runge-Kutta start-up is replaced by one restart: the second timestep
    is evaluated twice, first to improve the step that led there (that evaluation does not join the
    history), then to go on. Hence `num_steps + 1` rows, or one if there is but one step.
    """
    t, level, next_level = _leading_levels(config, num_steps)
    base_weight, noise_weight = _transfer(level, next_level)
    step = np.arange(num_steps)
    evaluated = np.repeat(step, np.where(step == 1, 2, 1))  # 0 1 1 2 3 ...
    taken = evaluated.copy()
    taken[1:2] = 0  # 0 0 1 2 3 ...
    order = np.arange(len(evaluated))
    restart = order == 1
    weights = _ADAMS_BASHFORTH[order.clip(max=4)]
    return _make_rows(
        t=t[evaluated],
        level=level[evaluated],
        step_index=evaluated,
        push=~restart,
        restart=restart,
        base_weight=base_weight[taken],
        history_weights=noise_weight[taken, None] * weights,
    )


def _make_dpmsolver_rows(config: ScheduleConfig, num_steps: int) -> SolverRows:
    """DPM-Solver++(2M), Algorithm 2 of arXiv:2211.01095; its history holds x_0, not noise.

    Timesteps are evenly spaced from the last one and rounded; the sample ends at no noise, which
    makes the last step first-order: there log(alpha / sigma) is infinite.
    """
    last = config.num_train_timesteps - 1
    if num_steps > last:
        raise InputError(f"num_steps is {num_steps}, expected 1..{last}")
    t = np.linspace(0, last, num_steps + 1).round().astype(np.int64)[:0:-1]
    level = alphas_cumprod(config)[t]
    alpha, sigma = np.sqrt(level), np.sqrt(1 - level)
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    base_weight = sigma_next / sigma

    h = np.diff(np.log(alpha / sigma))
    slope = np.zeros(num_steps)  # 1 / (2 r) of the paper; zero makes a step first-order
    slope[1:-1] = h[1:] / h[:-1] / 2
    zeros = np.zeros(num_steps)
    weights = np.stack([1 + slope, -slope, zeros, zeros], axis=1)
    # alpha_next * (1 - exp(-h)), without the infinite h of the last step.
    x0_weight = alpha_next - base_weight * alpha
    return _make_rows(
        t=t,
        level=level,
        x_weight=1 / alpha,
        eps_weight=-sigma / alpha,
        base_weight=base_weight,
        history_weights=x0_weight[:, None] * weights,
    )


# Of latent consistency models: the steps of the DDIM that is distilled; and the boundary condition,
# by which a clean image stays as it is.
_LCM_DISTILLED_STEPS = 50
_LCM_SIGMA_DATA = 0.5
_LCM_TIMESTEP_SCALE = 10.0


def _make_lcm_rows(config: ScheduleConfig, num_steps: int) -> SolverRows:
    """Multistep consistency sampling, Algorithm 3 of arXiv:2310.04378.

    Each row predicts the image and adds new noise of the next level; the last one adds none. For
    models that were distilled, or have an LCM-LoRA.
    """
    if num_steps > _LCM_DISTILLED_STEPS:
        raise InputError(
            f"num_steps is {num_steps}, expected 1..{_LCM_DISTILLED_STEPS} of a consistency model"
        )
    stride = config.num_train_timesteps // _LCM_DISTILLED_STEPS
    if not stride:
        raise InputError(
            f"num_train_timesteps is {config.num_train_timesteps}, expected at least "
            f"{_LCM_DISTILLED_STEPS} of a consistency model"
        )
    distilled = np.arange(_LCM_DISTILLED_STEPS, 0, -1) * stride - 1
    chosen = np.linspace(0, _LCM_DISTILLED_STEPS, num_steps, endpoint=False)
    t = distilled[np.floor(chosen).astype(np.int64)]
    level = alphas_cumprod(config)[t]
    alpha, sigma = np.sqrt(level), np.sqrt(1 - level)
    scaled = t * _LCM_TIMESTEP_SCALE
    skip = _LCM_SIGMA_DATA**2 / (scaled**2 + _LCM_SIGMA_DATA**2)
    out = scaled / np.sqrt(scaled**2 + _LCM_SIGMA_DATA**2)
    return _make_rows(
        t=t,
        level=level,
        x_weight=out / alpha + skip,
        eps_weight=-out * sigma / alpha,
        base_weight=np.zeros(num_steps),
        history_weights=np.append(alpha[1:], 1.0)[:, None] * _ADAMS_BASHFORTH[:1],
        noise_weight=np.append(sigma[1:], 0.0),
    )


SOLVERS: dict[str, Callable[[ScheduleConfig, int], SolverRows]] = {
    "ddim": _make_ddim_rows,
    "pndm": _make_pndm_rows,
    "dpmsolver++": _make_dpmsolver_rows,
    "lcm": _make_lcm_rows,
}


def make_solver_rows(name: str, config: ScheduleConfig, num_steps: int) -> SolverRows:
    """Builds the table of a solver on the host, in float64 until the last cast.

    Timesteps and weights agree with diffusers: DDIM and PNDM with its "leading" timesteps,
    DPM-Solver++ and LCM with the defaults of its schedulers.

    Args:
        name: Key of `SOLVERS`.
        config: The noise schedule that the UNets were trained with.
        num_steps: Number of steps. PNDM evaluates the UNets once more than that.

    Raises:
        InputError: The solver is unknown, or the schedule has no room for so many steps.
    """
    if name not in SOLVERS:
        raise InputError(f"solver is {name!r}, expected one of {sorted(SOLVERS)}")
    if num_steps < 1:
        raise InputError(f"num_steps is {num_steps}, expected at least 1")
    return SOLVERS[name](config, num_steps)
