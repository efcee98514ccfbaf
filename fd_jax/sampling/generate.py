"""Face-diffuser's three stages as one `jax.lax.scan` over a table of steps."""

from typing import Any, NamedTuple

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
        deep_tdm, deep_sdm = (None, None) if state.features is None else state.features
        eps_tdm, response_tdm, deep_tdm = _evaluate(
            *(tdm, row.use_tdm, row.reuse_tdm, deep_tdm),
            *(x, row.solver, contexts[NULL], contexts[TEXT]),
        )
        uncond, cond = _choose(contexts, row.sdm_uncond), _choose(contexts, row.sdm_cond)
        eps_sdm, response_sdm, deep_sdm = _evaluate(
            *(sdm, row.use_sdm, row.reuse_sdm, deep_sdm), *(x, row.solver, uncond, cond)
        )
        features = None if state.features is None else (deep_tdm, deep_sdm)
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


def _evaluate(model: Any, use: Any, reuse: Any, features: Any, *inputs: Any) -> Any:
    """Returns guided noise, response and deep features of a model, where a row uses it.

    By one conditional per network: a three-way switch over the stages would hold four copies of a
    UNet, and a select would evaluate both networks at every step. Whole or from the features is
    its third branch, as from a conditional within it GPUs would gather a sharded batch.
    """
    if features is None:
        return *jax.lax.cond(use, model, no_model, *inputs), None
    branch = jnp.where(use, jnp.where(reuse, 2, 1), 0)
    branches = no_model_reusing, model.whole, model.reused
    return jax.lax.switch(branch, branches, *inputs, features)


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
