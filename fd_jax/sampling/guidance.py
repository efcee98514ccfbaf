"""Functions of denoisers: noise from either prediction type, and classifier-free guidance."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fd_jax.sampling.solvers import SolverRows, v_to_eps
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Context, Latents

# x, t, context -> eps or v, as a UNet predicts it
Denoiser = Callable[[Latents, Int[Array, " b"], Context], Latents]
# x, row, context -> eps
EpsDenoiser = Callable[[Latents, SolverRows, Context], Latents]
# x, row, uncond, cond -> guided eps, guidance response
GuidedDenoiser = Callable[[Latents, SolverRows, Context, Context], tuple[Latents, Latents]]


def as_eps(denoiser: Denoiser, schedule: ScheduleConfig) -> EpsDenoiser:
    """Returns a function that predicts noise at a row of the solver, one timestep for all images.

    Args:
        denoiser: Predicts `schedule.prediction_type`.
        schedule: Noise schedule that the denoiser was trained with.
    """

    def predict_eps(x: Latents, row: SolverRows, context: Context) -> Latents:
        prediction = denoiser(x, jnp.broadcast_to(row.t, x.shape[:1]), context)
        if schedule.prediction_type == "epsilon":
            return prediction
        return v_to_eps(x, prediction, row)

    return predict_eps


def guided(
    denoiser: EpsDenoiser, scale: Float[Array, ""] | Float[Array, "b 1 1 1"]
) -> GuidedDenoiser:
    """Returns a function that computes guided noise and guidance response.

        response = scale * (eps_cond - eps_uncond)
        guided = eps_uncond + response

    Eq. 6 of arXiv:2207.12598 with scale = w + 1. The function calls the denoiser once, on a
    doubled batch.

    Args:
        denoiser: Predicts noise.
        scale: Guidance scale, for all images or one for each; 1 means no guidance.
    """

    def guide(
        x: Latents, row: SolverRows, uncond: Context, cond: Context
    ) -> tuple[Latents, Latents]:
        # Both evaluations of an image are neighbours, so that a sharded batch stays where it is.
        doubled = jnp.repeat(x, 2, axis=0)
        context = jnp.stack([uncond, cond], axis=1).reshape(-1, *cond.shape[1:])
        eps = denoiser(doubled, row, context)
        eps = eps.astype(jnp.float32).reshape(-1, 2, *x.shape[1:])
        response = scale * (eps[:, 1] - eps[:, 0])
        return eps[:, 0] + response, response

    return guide


def no_model(
    x: Latents, row: SolverRows, uncond: Context, cond: Context
) -> tuple[Latents, Latents]:
    """Returns zeros, in place of a guided denoiser that is not evaluated."""
    return jnp.zeros_like(x), jnp.zeros_like(x)
