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
    _, h, w, _ = x.shape
    return resize(total / 16, (h, w))


def _gaussian(x: Saliency) -> Saliency:
    weights = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / 2)
    first, second, third = (weights / weights.sum()).tolist()
    _, h, w, _ = x.shape
    # Edge padding: zeros would leave a darker rim.
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rows = first * x[:, :h] + second * x[:, 1 : h + 1] + third * x[:, 2 : h + 2]
    return first * rows[:, :, :w] + second * rows[:, :, 1 : w + 1] + third * rows[:, :, 2 : w + 2]
