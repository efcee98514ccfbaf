"""Distributions of the timesteps that training draws."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Key

from fd_jax.schedule import ScheduleConfig, alphas_cumprod


def laplace(schedule: ScheduleConfig, scale: float) -> Float32[np.ndarray, " n"]:
    """Returns the cumulative distribution of timesteps whose log SNR follows a Laplace density.

    The density is centred on a log SNR of 0 (arXiv:2407.03297), where latents and noise are equally
    strong. Uniform timesteps are often drawn where little is left to learn.

    Args:
        schedule: The noise schedule.
        scale: Scale of the Laplace density in log SNR; its standard deviation is sqrt(2) * scale.
    """
    level = alphas_cumprod(schedule)
    log_snr = np.log(level) - np.log1p(-level)
    # A timestep stands for the log SNRs up to its neighbours'.
    width = np.abs(np.gradient(log_snr)) if len(level) > 1 else np.ones(1)
    weight = np.exp(-np.abs(log_snr) / scale) * width
    return (np.cumsum(weight) / weight.sum()).astype(np.float32)


def draw(key: Key[Array, ""], cumulative: Float[Array, " n"]) -> Int[Array, ""]:
    """Draws a timestep from its cumulative distribution."""
    t = jnp.searchsorted(cumulative, jax.random.uniform(key, (), jnp.float32), side="right")
    return jnp.minimum(t, len(cumulative) - 1).astype(jnp.int32)
