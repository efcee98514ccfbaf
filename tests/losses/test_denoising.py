import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.losses.denoising import denoising_loss, loss_mask, min_snr_weight, target
from tests.helpers.modules import normal


def wide(values):
    return jnp.array(values, jnp.float32)[:, None, None, None]


def test_v_is_a_quarter_turn_of_x():
    """With alpha = cos and sigma = sin of an angle, v is x at the angle plus a right one."""
    latents, noise = normal((2, 3, 5, 4)), normal((2, 3, 5, 4), seed=1)
    angle = wide([0.3, 1.1])
    turned = angle + np.pi / 2
    x = jnp.cos(turned) * latents + jnp.sin(turned) * noise
    v = target(latents, noise, jnp.cos(angle), jnp.sin(angle), "v_prediction")
    np.testing.assert_allclose(v, x, atol=1e-6)


def test_the_noise_is_the_target_otherwise():
    latents, noise = normal((1, 3, 5, 4)), normal((1, 3, 5, 4), seed=1)
    assert target(latents, noise, wide([0.6]), wide([0.8]), "epsilon") is noise


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_loss_of_x0_by_min_snr_and_gamma(kind):
    alpha = jnp.sqrt(jnp.array([0.99, 0.5, 0.01]))
    sigma = jnp.sqrt(1 - alpha**2)
    latents, noise, error = (normal((3, 2, 2, 4), seed=i) for i in range(3))
    columns = alpha[:, None, None, None], sigma[:, None, None, None]
    expected = target(latents, noise, *columns, kind)
    prediction = expected + error
    # What x_0 the prediction stands for: x = alpha x_0 + sigma eps, v = alpha eps - sigma x_0.
    x = columns[0] * latents + columns[1] * noise
    if kind == "epsilon":
        x0 = (x - columns[1] * prediction) / columns[0]
    else:
        x0 = columns[0] * x - columns[1] * prediction
    of_x0 = jnp.mean((x0 - latents) ** 2, axis=(1, 2, 3))
    snr = (alpha / sigma) ** 2
    weight = min_snr_weight(alpha, sigma, 5.0, kind)
    loss = denoising_loss(prediction, expected, weight=weight)
    np.testing.assert_allclose(loss, jnp.minimum(snr, 5.0) * of_x0, rtol=1e-4)


MASKS = np.zeros((2, 2, 8, 8), np.float32)
MASKS[0, 0, :4, :4] = 1
MASKS[0, 1, 4:, 4:] = 1
HAS = jnp.array([[True, True], [False, False]])


def test_the_mask_is_the_union_of_all_subjects():
    mask = loss_mask(jnp.array(MASKS), HAS, (4, 4), "whole")[0, ..., 0]
    expected = np.kron(np.eye(2), np.ones((2, 2)))
    np.testing.assert_allclose(mask, expected)


@pytest.mark.parametrize(("absent", "value"), [("whole", 1.0), ("released", 0.0)])
def test_a_sample_without_subjects(absent, value):
    mask = loss_mask(jnp.array(MASKS), HAS, (4, 4), absent)
    np.testing.assert_array_equal(mask[1], np.full((4, 4, 1), value))


def test_an_absent_subject_masks_nothing():
    has = jnp.array([[True, False], [False, False]])
    mask = loss_mask(jnp.array(MASKS), has, (8, 8), "whole")[0, ..., 0]
    np.testing.assert_array_equal(mask, MASKS[0, 0])


def test_pixels_outside_the_mask_count_as_zero():
    prediction, expected = normal((1, 2, 2, 4)), normal((1, 2, 2, 4), seed=1)
    mask = jnp.array([[1.0, 0.0], [0.0, 0.0]])[None, :, :, None]
    loss = denoising_loss(prediction, expected, mask)
    first = np.mean((prediction - expected)[0, 0, 0] ** 2)
    np.testing.assert_allclose(loss, [first / 4], rtol=1e-6)  # the mean is over all pixels
