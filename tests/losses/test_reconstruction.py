import jax.numpy as jnp
import numpy as np

from fd_jax.losses.reconstruction import divergence, reconstruction_loss
from fd_jax.models.vae import Posterior
from tests.helpers.modules import normal


def test_a_standard_normal_does_not_diverge():
    zeros = jnp.zeros((2, 3, 3, 4))
    np.testing.assert_array_equal(divergence(Posterior(zeros, zeros)), [0, 0])


def test_divergence_equals_its_integral():
    mean, logvar = normal((1, 1, 1, 4)), normal((1, 1, 1, 4), seed=1)
    x = np.linspace(-20, 20, 20001)[:, None]
    m, v = np.array(mean)[0, 0], np.exp(np.array(logvar)[0, 0])
    log_q = -((x - m) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2
    log_p = -(x**2) / 2 - np.log(2 * np.pi) / 2
    integral = np.trapezoid(np.exp(log_q) * (log_q - log_p), x[:, 0], axis=0).mean()
    np.testing.assert_allclose(divergence(Posterior(mean, logvar)), [integral], rtol=1e-4)


def test_reconstruction_counts_edges_that_are_missed():
    image = jnp.zeros((1, 4, 4, 3)).at[:, :, 2:].set(1.0)
    flat = jnp.full_like(image, 0.5)
    # Half a step of each pixel, and 4 of the 12 pairs of neighbours in rows differ by one.
    np.testing.assert_allclose(reconstruction_loss(flat, image), [0.5 + 4 / 12], rtol=1e-6)


def test_reconstruction_is_the_mean_distance_where_no_edge_differs():
    image = normal((2, 4, 6, 3))
    loss = reconstruction_loss(image + jnp.array([0.5, -0.25])[:, None, None, None], image)
    np.testing.assert_allclose(loss, [0.5, 0.25], rtol=1e-5)
