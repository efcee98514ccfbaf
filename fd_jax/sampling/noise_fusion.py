"""Saliency-adaptive noise fusion (SNF), arXiv:2311.10329."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fd_jax.ops.layers import resize
from fd_jax.types import Latents

Smoothing = Literal["box", "gaussian"]
Saliency = Float[Array, "b h w 1"]


def saliency(response: Latents, smoothing: Smoothing = "box") -> Saliency:
    """Computes how strongly each latent pixel responds to its condition.

    Args:
        response: Guidance response, scale * (eps_cond - eps_uncond).
        smoothing: `box`, the 4x4 mean of the released code, or `gaussian`, 3x3 with sigma 1, as
            in the paper's text.

    Returns:
        A distribution over the pixels of each image: softmax of the smoothed absolute response,
        averaged over channels.
    """
    x = jnp.abs(response.astype(jnp.float32)).mean(axis=-1, keepdims=True)
    smooth = _box(x) if smoothing == "box" else _gaussian(x)
    return jax.nn.softmax(smooth, axis=(1, 2))


def saliency_mask(tdm: Saliency, sdm: Saliency) -> Bool[Array, "b h w 1"]:
    """Returns where the SDM is the more salient model. Ties go to the TDM."""
    return sdm > tdm


def _box(x: Saliency) -> Saliency:
    """Averages 4x4 pixels, padding of one zero included, and resizes to the size of `x`."""
    total = jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, 4, 4, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))
    )
    return resize(total / 16, x.shape[1:3])


def _gaussian(x: Saliency) -> Saliency:
    weights = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / 2)
    weights /= weights.sum()
    h, w = x.shape[1:3]
    # Edge padding: zeros would leave a darker rim.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = sum(float(weights[i]) * x[:, i : i + h] for i in range(3))
    return sum(float(weights[i]) * rows[:, :, i : i + w] for i in range(3))
