"""Face-diffuser's three stages as one `jax.lax.scan` over a table of steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from fd_jax.sampling.guidance import Denoiser, guide
from fd_jax.sampling.noise_fusion import Smoothing, saliency, saliency_mask
from fd_jax.sampling.solvers import SolverState, predict_x0, solver_step, v_to_eps
from fd_jax.sampling.stages import NULL, TEXT, Steps
from fd_jax.types import Latents

Contexts = Float[Array, "3 b n d"]  # negative prompt, prompt, prompt with subjects


class Trace(NamedTuple):
    """What the models did at one row, or with a leading axis at all rows.

    Where a model was not evaluated its saliency is uniform.
    """

    tdm_saliency: Float[Array, "*n b h w"]
    sdm_saliency: Float[Array, "*n b h w"]
    sdm_weight: Float[Array, "*n b h w"]  # the mask: share of the SDM in the noise
    x0: Float[Array, "*n b h w 4"]  # the latents that the noise predicts


def initial_noise(keys: Key[Array, " b"], height: int, width: int) -> Latents:
    """Standard normal latents, those of each image from its own key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, (height, width, 4)))(keys)


def sample(
    tdm: Denoiser,
    sdm: Denoiser,
    state: SolverState,
    contexts: Contexts,
    guidance_scale: Float[Array, ""],
    steps: Steps,
    *,
    prediction_type: str = "epsilon",
    smoothing: Smoothing = "box",
    trace: bool = False,
) -> tuple[SolverState, Trace | None]:
    """Executes rows of the table, from noise or from where earlier rows ended.

    Args:
        tdm: Predicts noise, or v, from the text.
        sdm: Predicts noise, or v, from the text with subjects.
        state: `init_state` of noise, or what an earlier call returned.
        contexts: Contexts of every image.
        guidance_scale: Of both models.
        steps: The rows.
        prediction_type: What both predict, `epsilon` or `v_prediction`.
        smoothing: Of the saliency.
        trace: Whether to return what happened at every row.
    """

    def body(state: SolverState, row: Steps) -> tuple[SolverState, Trace | None]:
        x, t = state.x, row.solver.t

        def skip(x: Latents) -> tuple[Latents, Latents]:
            return jnp.zeros_like(x), jnp.zeros_like(x)

        def predicts_eps(model: Denoiser) -> Denoiser:
            if prediction_type == "epsilon":
                return model
            return lambda x, t, context: v_to_eps(x, model(x, t, context), row.solver)

        def run_tdm(x: Latents) -> tuple[Latents, Latents]:
            return guide(predicts_eps(tdm), x, t, contexts[NULL], contexts[TEXT], guidance_scale)

        def run_sdm(x: Latents) -> tuple[Latents, Latents]:
            uncond, cond = contexts[row.sdm_uncond], contexts[row.sdm_cond]
            return guide(predicts_eps(sdm), x, t, uncond, cond, guidance_scale)

        # One conditional per network: a three-way switch would hold four copies of a UNet, and a
        # select would evaluate both networks at every step.
        eps_tdm, response_tdm = jax.lax.cond(row.use_tdm, run_tdm, skip, x)
        eps_sdm, response_sdm = jax.lax.cond(row.use_sdm, run_sdm, skip, x)
        saliency_tdm = saliency(response_tdm, smoothing)
        saliency_sdm = saliency(response_sdm, smoothing)
        mask = saliency_mask(saliency_tdm, saliency_sdm)
        weight = jnp.where(row.use_snf, mask.astype(x.dtype), row.sdm_weight)
        eps = weight * eps_sdm + (1 - weight) * eps_tdm

        seen = None
        if trace:
            x0 = predict_x0(x, eps, row.solver)
            seen = Trace(saliency_tdm[..., 0], saliency_sdm[..., 0], weight[..., 0], x0)
        return solver_step(state, eps, row.solver), seen

    return jax.lax.scan(body, state, steps)
