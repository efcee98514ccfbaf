"""The autoencoder's loss."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fd_jax.models.vae import Posterior
from fd_jax.types import Images


def reconstruction_loss(decoded: Images, image: Images) -> Float[Array, " b"]:
    """Returns each sample's mean absolute error, of pixels and of their edges.

    An edge is the difference of two neighbours, beside or below. Without them a small autoencoder
    is long content with blurs: eyes are few pixels of a picture.
    """
    error = decoded - image
    edges = (jnp.diff(error, axis=axis) for axis in (1, 2))
    return sum(jnp.mean(jnp.abs(x), axis=(1, 2, 3)) for x in (error, *edges))


def divergence(posterior: Posterior) -> Float[Array, " b"]:
    """Returns the Kullback-Leibler divergence of the posterior from a standard normal.

    The mean over its numbers, Eq. 10 of arXiv:1312.6114.
    """
    mean, logvar = posterior
    return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3))
