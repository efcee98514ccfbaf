"""Functions of denoisers: noise from either prediction type, and classifier-free guidance."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fd_jax.sampling.solvers import Features, SolverRows, v_to_eps
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Context, Latents

# x, t, context -> eps or v, as a UNet predicts it
Denoiser = Callable[[Latents, Int[Array, " b"], Context], Latents]
# x, row, context -> eps
EpsDenoiser = Callable[[Latents, SolverRows, Context], Latents]
# x, row, uncond, cond -> guided eps, guidance response
GuidedDenoiser = Callable[[Latents, SolverRows, Context, Context], tuple[Latents, Latents]]
# the same, features -> the same, the features to go on with
FeaturesDenoiser = Callable[
    [Latents, SolverRows, Context, Context, Features], tuple[Latents, Latents, Features]
]


class ReusingDenoiser(NamedTuple):
    """A guided denoiser in two forms."""

    whole: FeaturesDenoiser  # evaluates all of the UNet, and returns new features
    reused: FeaturesDenoiser  # evaluates its top from the features, and returns them as they are


@runtime_checkable
class DeepDenoiser(Protocol):
    """A UNet whose deep features can be reused."""

    def with_features(
        self, x: Latents, t: Int[Array, " b"], context: Context
    ) -> tuple[Latents, Features]:
        """Predicts as a denoiser does, and returns its deep features."""
        ...

    def from_features(
        self, x: Latents, t: Int[Array, " b"], context: Context, features: Features
    ) -> Latents:
        """Predicts from deep features of another timestep."""
        ...


def as_eps(denoiser: Denoiser, schedule: ScheduleConfig) -> EpsDenoiser:
    """Returns a function that predicts noise at a row of the solver, one timestep for all images.

    Args:
        denoiser: Predicts `schedule.prediction_type`.
        schedule: Noise schedule that the denoiser was trained with.
    """

    def predict_eps(x: Latents, row: SolverRows, context: Context) -> Latents:
        return _to_eps(denoiser(x, _timesteps(x, row), context), x, row, schedule)

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
        doubled, context = _double(x, uncond, cond)
        return _respond(denoiser(doubled, row, context), scale)

    return guide


def guided_reusing(
    denoiser: DeepDenoiser,
    schedule: ScheduleConfig,
    scale: Float[Array, ""] | Float[Array, "b 1 1 1"],
) -> ReusingDenoiser:
    """Returns two functions as `guided` does, of which one reuses deep features.

    Args:
        denoiser: Predicts `schedule.prediction_type`.
        schedule: Noise schedule that the denoiser was trained with.
        scale: Guidance scale, for all images or one for each.
    """

    def guide(predict: Callable) -> FeaturesDenoiser:
        def guide(
            x: Latents, row: SolverRows, uncond: Context, cond: Context, features: Features
        ) -> tuple[Latents, Latents, Features]:
            doubled, context = _double(x, uncond, cond)
            prediction, features = predict(doubled, _timesteps(doubled, row), context, features)
            return *_respond(_to_eps(prediction, doubled, row, schedule), scale), features

        return guide

    return ReusingDenoiser(
        guide(lambda x, t, context, _: denoiser.with_features(x, t, context)),
        guide(lambda *inputs: (denoiser.from_features(*inputs), inputs[-1])),
    )


def no_model(
    x: Latents, row: SolverRows, uncond: Context, cond: Context
) -> tuple[Latents, Latents]:
    """Returns zeros, in place of a guided denoiser that is not evaluated."""
    return jnp.zeros_like(x), jnp.zeros_like(x)


def no_model_reusing(
    x: Latents, row: SolverRows, uncond: Context, cond: Context, features: Features
) -> tuple[Latents, Latents, Features]:
    """Returns zeros and the features as they are, in place of a denoiser of `guided_reusing`."""
    return *no_model(x, row, uncond, cond), features


def _timesteps(x: Latents, row: SolverRows) -> Int[Array, " b"]:
    return jnp.broadcast_to(row.t, x.shape[:1])


def _to_eps(prediction: Latents, x: Latents, row: SolverRows, schedule: ScheduleConfig) -> Latents:
    if schedule.prediction_type == "epsilon":
        return prediction
    return v_to_eps(x, prediction, row)


def _double(
    x: Latents, uncond: Context, cond: Context
) -> tuple[Float[Array, "evaluations h w 4"], Float[Array, "evaluations tokens context"]]:
    """Returns the inputs of both evaluations of each image.

    They are neighbours, so that a sharded batch stays where it is.
    """
    context = jnp.stack([uncond, cond], axis=1).reshape(-1, *cond.shape[1:])
    return jnp.repeat(x, 2, axis=0), context


def _respond(
    eps: Float[Array, "evaluations h w 4"], scale: Float[Array, ""] | Float[Array, "b 1 1 1"]
) -> tuple[Latents, Latents]:
    """Returns guided noise and guidance response of both evaluations of each image."""
    eps = eps.astype(jnp.float32).reshape(-1, 2, *eps.shape[1:])
    response = scale * (eps[:, 1] - eps[:, 0])
    return eps[:, 0] + response, response
