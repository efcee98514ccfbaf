"""The noise loss: targets, weights and masks."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fd_jax.types import HasSubject, Latents

Absent = Literal["whole", "released"]
SubjectMasks = Float[Array, "b s h w"]


def target(
    latents: Latents,
    noise: Latents,
    alpha: Float[Array, "b 1 1 1"],
    sigma: Float[Array, "b 1 1 1"],
    prediction_type: str,
) -> Latents:
    """Returns what the network should predict: the noise, or v of arXiv:2202.00512.

    Args:
        latents: Without noise.
        noise: What is added.
        alpha: x_t = alpha * latents + sigma * noise.
        sigma: Its other half.
        prediction_type: `epsilon` or `v_prediction`.
    """
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * latents
    return noise


def min_snr_weight(
    alpha: Float[Array, " b"], sigma: Float[Array, " b"], gamma: float, prediction_type: str
) -> Float[Array, " b"]:
    """Returns min-SNR-gamma weights of the loss, by sample (arXiv:2303.09556).

    The loss of x_0, weighted by min(snr, gamma), is that of the noise weighted by min(snr, gamma)
    / snr, and that of v weighted by min(snr, gamma) / (snr + 1).
    """
    snr = (alpha / sigma) ** 2
    return jnp.minimum(snr, gamma) / (snr + (prediction_type == "v_prediction"))


def loss_mask(
    masks: SubjectMasks, has_subject: HasSubject, size: tuple[int, int], absent: Absent
) -> Float[Array, "b h2 w2 1"]:
    """Returns the union of each sample's subject masks, resized to the latents.

    Bilinear with half-pixel centres, without antialiasing, as the released code does it.

    Args:
        masks: Of each subject, 0 or 1, at the image's size.
        has_subject: Which subjects there are.
        size: Height and width of the latents.
        absent: What a sample without subjects counts: `whole`, all of it; `released`, nothing.
    """
    union = jnp.max(masks * has_subject[:, :, None, None], axis=1)[..., None]
    mask = jax.image.resize(union, (len(union), *size, 1), "bilinear", antialias=False)
    if absent == "whole":
        is_absent = ~has_subject.any(axis=1)
        mask = jnp.where(is_absent[:, None, None, None], 1.0, mask)
    return mask


def denoising_loss(
    prediction: Latents,
    wanted: Latents,
    mask: Float[Array, "b h w 1"] | None = None,
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """Returns each sample's mean squared error over all pixels, those outside the mask being zero.

    Args:
        prediction: Of the network.
        wanted: `target`.
        mask: Weight of each pixel, before the square.
        weight: Of each sample.
    """
    if mask is not None:
        prediction, wanted = mask * prediction, mask * wanted
    loss = jnp.mean((prediction - wanted) ** 2, axis=(1, 2, 3))
    return loss if weight is None else weight * loss
