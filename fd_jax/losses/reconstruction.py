"""Losses of the autoencoder: reconstruction and divergence."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fd_jax.models.vae import Posterior
from fd_jax.types import Images


def reconstruction_loss(decoded: Images, image: Images) -> Float[Array, " b"]:
    """Computes each example's mean absolute error, of pixels and of their edges.

    An edge is the difference of two neighbours, below or beside. Without this term a small
    autoencoder blurs for long: eyes are few pixels of an image.
    """

    def mean_absolute(x: Array) -> Array:
        return jnp.mean(jnp.abs(x), axis=(1, 2, 3))

    error = decoded - image
    vertical = jnp.diff(error, axis=1)
    horizontal = jnp.diff(error, axis=2)
    return mean_absolute(error) + mean_absolute(vertical) + mean_absolute(horizontal)


def divergence(posterior: Posterior) -> Float[Array, " b"]:
    """Computes the Kullback-Leibler divergence of the posterior from a standard normal.

    It is the mean over latent values of Eq. 10 of arXiv:1312.6114.
    """
    mean, logvar = posterior
    return 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar, axis=(1, 2, 3))
