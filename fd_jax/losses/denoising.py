"""The denoising loss: targets, weights and masks."""

from collections.abc import Collection
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fd_jax.models.attention import AttentionMap
from fd_jax.models.unet import UNet
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.types import Context, HasSubject, Latents

Absent = Literal["whole", "released"]
SubjectMasks = Float[Array, "b s h w"]


def latent_diffusion_loss(
    unet: UNet,
    latents: Latents,
    context: Context,
    t: Int[Array, " b"],
    noise: Latents,
    schedule: ScheduleConfig,
    *,
    mask: Float[Array, "b h w 1"] | None = None,
    min_snr_gamma: float | None = None,
    map_levels: Collection[str] = (),
) -> tuple[Float[Array, " b"], dict[str, AttentionMap]]:
    """Adds noise to latents and returns each sample's loss of predicting it.

    No gradient reaches the latents: an autoencoder that follows the denoising loss makes latents
    that are easy to predict and say nothing of the image.

    Args:
        unet: Denoiser of `schedule.prediction_type`.
        latents: Scaled VAE output.
        context: Cross-attention input.
        t: Timesteps, 0..999.
        noise: Standard normal noise.
        schedule: Noise schedule.
        mask: Weight of each latent pixel.
        min_snr_gamma: Gamma of the min-SNR weights; None weighs all timesteps alike.
        map_levels: Levels of the UNet whose cross-attention maps are returned.

    Returns:
        The losses, and the cross-attention maps by layer.
    """
    latents = jax.lax.stop_gradient(latents)
    level = alphas_cumprod(schedule)
    alpha = jnp.asarray(np.sqrt(level).astype(np.float32))[t]
    sigma = jnp.asarray(np.sqrt(1 - level).astype(np.float32))[t]
    alpha_4d, sigma_4d = (x[:, None, None, None] for x in (alpha, sigma))
    x = alpha_4d * latents + sigma_4d * noise
    prediction, maps = unet.with_maps(x, t, context, map_levels)
    kind = schedule.prediction_type
    weight = None
    if min_snr_gamma is not None:
        weight = min_snr_weight(alpha, sigma, min_snr_gamma, kind)
    expected = target(latents, noise, alpha_4d, sigma_4d, kind)
    return denoising_loss(prediction, expected, mask, weight), maps


def target(
    latents: Latents,
    noise: Latents,
    alpha: Float[Array, "b 1 1 1"],
    sigma: Float[Array, "b 1 1 1"],
    prediction_type: str,
) -> Latents:
    """Returns the target of the prediction: the noise, or v of arXiv:2202.00512.

    Args:
        latents: Clean latents.
        noise: Added noise.
        alpha: Signal level: x_t = alpha * latents + sigma * noise.
        sigma: Noise level.
        prediction_type: `epsilon` or `v_prediction`.
    """
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * latents
    return noise


def min_snr_weight(
    alpha: Float[Array, " b"], sigma: Float[Array, " b"], gamma: float, prediction_type: str
) -> Float[Array, " b"]:
    """Returns min-SNR-gamma weights of the loss, by sample (arXiv:2303.09556).

    A loss of x_0 weighted by min(snr, gamma) equals the loss of the noise weighted by
    min(snr, gamma) / snr, and the loss of v weighted by min(snr, gamma) / (snr + 1).
    """
    snr = (alpha / sigma) ** 2
    if prediction_type == "v_prediction":
        return jnp.minimum(snr, gamma) / (snr + 1)
    return jnp.minimum(snr, gamma) / snr


def loss_mask(
    masks: SubjectMasks, has_subject: HasSubject, size: tuple[int, int], absent: Absent
) -> Float[Array, "b h2 w2 1"]:
    """Returns the union of each sample's subject masks, resized to the latents.

    Bilinear with half-pixel centres, without antialiasing, as in the released code.

    Args:
        masks: Subject masks, 0 or 1, at the image's size.
        has_subject: True where a subject is present.
        size: Height and width of the latents.
        absent: Mask of samples without subjects: `whole` is 1, `released` is 0.
    """
    union = jnp.max(masks * has_subject[:, :, None, None], axis=1)[..., None]
    mask = jax.image.resize(union, (len(union), *size, 1), "bilinear", antialias=False)
    if absent == "whole":
        is_absent = ~has_subject.any(axis=1)
        mask = jnp.where(is_absent[:, None, None, None], 1.0, mask)
    return mask


def denoising_loss(
    prediction: Latents,
    expected: Latents,
    mask: Float[Array, "b h w 1"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Returns each sample's mean squared error over all pixels, 0 outside of the mask.

    Args:
        prediction: Output of the denoiser.
        expected: `target`.
        mask: Weight of each latent pixel, applied before the square.
        weight: Weight of each sample.
    """
    if mask is not None:
        prediction = mask * prediction
        expected = mask * expected
    loss = jnp.mean((prediction - expected) ** 2, axis=(1, 2, 3))
    return loss if weight is None else weight * loss
