import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.demo.appearance import SIZE, appearance
from tests.helpers.modules import normal


def scene(left, top, *, behind=0.0):
    """A picture of 32 x 32 with a subject of 12 x 16 at this place, and its mask."""
    image = jnp.full((1, 32, 32, 3), behind)
    subject = jnp.clip(normal((16, 12, 3)) * 0.4, -1, 1)
    mask = jnp.zeros((1, 1, 32, 32)).at[:, :, top : top + 16, left : left + 12].set(1.0)
    return image.at[:, top : top + 16, left : left + 12].set(subject), mask


def test_it_depends_on_the_subject_alone():
    expected = appearance(*scene(3, 5))
    assert expected.shape == (1, 1, SIZE)
    np.testing.assert_allclose(appearance(*scene(17, 12, behind=0.9)), expected, atol=1e-5)
    image, mask = scene(3, 5)
    assert np.abs(appearance(-image, mask) - expected).max() > 0.5


def test_of_a_plain_subject_only_the_mean_is_not_zero():
    """Constant planes have no frequencies but 0: brightness, and two differences of colour."""
    image = jnp.broadcast_to(jnp.array([0.6, 0.0, 0.3]), (1, 16, 16, 3))
    found = np.array(appearance(image, jnp.ones((1, 1, 16, 16))))[0, 0]
    first = found[[0, 64, 80]]
    np.testing.assert_allclose(first, [2.5 * 0.3, 8 * 0.3, 0], atol=1e-5)
    found[[0, 64, 80]] = 0
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_frequencies_are_those_of_a_cosine():
    """A wave of two half-periods across the box is one of the numbers alone."""
    x = (np.arange(16) + 0.5) / 16
    image = jnp.broadcast_to(jnp.array(np.cos(2 * np.pi * x))[None, None, :, None], (1, 16, 16, 3))
    found = np.array(appearance(image, jnp.ones((1, 1, 16, 16))))[0, 0]
    assert found[2] == pytest.approx(2.5 * (1 + 1.5 * 2) * np.sqrt(2) / 2, rel=1e-4)
    found[2] = 0
    np.testing.assert_allclose(found, 0, atol=1e-5)
