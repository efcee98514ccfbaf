"""Face-diffuser's three stages as one `jax.lax.scan` over a table of steps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from fd_jax.sampling.guidance import (
    GuidedDenoiser,
    ReusingDenoiser,
    no_model,
    no_model_reusing,
)
from fd_jax.sampling.noise_fusion import Smoothing, saliency, saliency_mask
from fd_jax.sampling.solvers import SolverState, predict_x0, solver_step
from fd_jax.sampling.stages import AUGMENTED, NULL, TEXT, Steps
from fd_jax.types import Context, Latents

Contexts = Float[Array, "3 b n d"]  # negative prompt, prompt, prompt with subjects


class Trace(NamedTuple):
    """Saliency maps and predictions of one evaluation, or of n with a leading axis.

    The saliency of a model that was not evaluated is uniform.
    """

    tdm_saliency: Float[Array, "*n b h w"]
    sdm_saliency: Float[Array, "*n b h w"]
    sdm_weight: Float[Array, "*n b h w"]  # the mask: share of the SDM in the noise
    x0: Float[Array, "*n b h w 4"]  # the latents that the noise predicts


def initial_noise(keys: Key[Array, " b"], height: int, width: int) -> Latents:
    """Draws standard normal latents, those of each image from its own key alone."""
    return jax.vmap(lambda key: jax.random.normal(key, (height, width, 4), jnp.float32))(keys)


def sample(
    tdm: GuidedDenoiser | ReusingDenoiser,
    sdm: GuidedDenoiser | ReusingDenoiser,
    state: SolverState,
    contexts: Contexts,
    steps: Steps,
    *,
    smoothing: Smoothing = "box",
    trace: bool = False,
) -> tuple[SolverState, Trace | None]:
    """Executes rows of the table, from noise or from the state that earlier rows returned.

    Args:
        tdm: Guided denoiser of the text; of `guided_reusing` if the state has features.
        sdm: Guided denoiser of the text with subjects, of the same kind.
        state: `init_state` of noise, or the state that an earlier call returned. Without features,
            all rows evaluate the whole networks.
        contexts: Contexts of every image.
        steps: The rows, one evaluation each; for all images, or of `join_steps`.
        smoothing: Smoothing of the saliency.
        trace: Whether to return a trace of all rows.
    """

    def body(state: SolverState, row: Steps) -> tuple[SolverState, Trace | None]:
        x = state.x
        by_tdm = x, row.solver, contexts[NULL], contexts[TEXT]
        uncond, cond = _choose(contexts, row.sdm_uncond), _choose(contexts, row.sdm_cond)
        by_sdm = x, row.solver, uncond, cond
        # One conditional per network: a three-way switch would hold four copies of a UNet, and a
        # select would evaluate both networks at every step.
        features = None
        if state.features is None:
            eps_tdm, response_tdm = jax.lax.cond(row.use_tdm, tdm, no_model, *by_tdm)
            eps_sdm, response_sdm = jax.lax.cond(row.use_sdm, sdm, no_model, *by_sdm)
        else:
            deep_tdm, deep_sdm = state.features
            eps_tdm, response_tdm, deep_tdm = jax.lax.cond(
                row.use_tdm, tdm, no_model_reusing, *by_tdm, row.reuse_tdm, deep_tdm
            )
            eps_sdm, response_sdm, deep_sdm = jax.lax.cond(
                row.use_sdm, sdm, no_model_reusing, *by_sdm, row.reuse_sdm, deep_sdm
            )
            features = deep_tdm, deep_sdm
        saliency_tdm = saliency(response_tdm, smoothing)
        saliency_sdm = saliency(response_sdm, smoothing)
        mask = saliency_mask(saliency_tdm, saliency_sdm)
        use_snf, sdm_weight = _per_image(row.use_snf), _per_image(row.sdm_weight)
        weight = jnp.where(use_snf, mask.astype(x.dtype), sdm_weight)
        eps = weight * eps_sdm + (1 - weight) * eps_tdm

        seen = None
        if trace:
            x0 = predict_x0(x, eps, row.solver)
            seen = Trace(saliency_tdm[..., 0], saliency_sdm[..., 0], weight[..., 0], x0)
        return solver_step(state, eps, row.solver)._replace(features=features), seen

    return jax.lax.scan(body, state, steps)


def _choose(contexts: Contexts, index: Int[Array | np.ndarray, "*b"]) -> Context:
    """Returns one of the contexts, the same for all images or one for each."""
    if index.ndim == 0:
        return contexts[index]
    each = index[:, None, None]
    augmented = contexts[AUGMENTED]
    return jnp.where(
        each == NULL, contexts[NULL], jnp.where(each == TEXT, contexts[TEXT], augmented)
    )


def _per_image(column: Array | np.ndarray) -> Array | np.ndarray:
    """Returns a value of a row as it multiplies latents."""
    return column if column.ndim == 0 else column[:, None, None, None]
