"""Classifier-free guidance: guided noise and guidance response."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fd_jax.types import Context, Latents

Denoiser = Callable[[Latents, Int[Array, " b"], Context], Latents]  # x, t, context -> eps


def guide(
    denoiser: Denoiser,
    x: Latents,
    t: Int[Array, ""],
    uncond: Context,
    cond: Context,
    scale: Float[Array, ""],
) -> tuple[Latents, Latents]:
    """Returns guided noise and guidance response, from one call on a doubled batch.

        response = scale * (eps_cond - eps_uncond)
        guided = eps_uncond + response

    Eq. 6 of arXiv:2207.12598 with scale = w + 1.

    Args:
        denoiser: Predicts noise.
        x: Noisy latents.
        t: Their timestep.
        uncond: Context to move away from.
        cond: Context to move towards.
        scale: 1 means no guidance.
    """
    # Both evaluations of an image are neighbours, so that a sharded batch stays where it is.
    doubled = jnp.repeat(x, 2, axis=0)
    context = jnp.stack([uncond, cond], axis=1).reshape(-1, *cond.shape[1:])
    eps = denoiser(doubled, jnp.broadcast_to(t, doubled.shape[:1]), context)
    eps = eps.astype(jnp.float32).reshape(-1, 2, *x.shape[1:])
    response = scale * (eps[:, 1] - eps[:, 0])
    return eps[:, 0] + response, response
