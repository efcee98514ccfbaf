import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.sampling import noise_fusion
from tests.helpers.modules import normal

saliency = jax.jit(noise_fusion.saliency, static_argnames="smoothing")
every_smoothing = pytest.mark.parametrize("smoothing", ["box", "gaussian"])
RESPONSE = 3 * normal((2, 6, 9, 4))


def log_saliency(response, smoothing):
    """The smoothed response, but for a constant."""
    logits = np.log(np.asarray(saliency(response, smoothing=smoothing), np.float64))[..., 0]
    return logits - logits.mean(axis=(1, 2), keepdims=True)


@every_smoothing
@pytest.mark.parametrize("size", [(2, 3), (6, 9), (16, 8)])
def test_saliency_is_a_distribution_over_pixels(smoothing, size):
    shares = saliency(normal((2, *size, 4)), smoothing=smoothing)

    assert shares.shape == (2, *size, 1)
    assert (shares > 0).all()
    np.testing.assert_allclose(shares.sum(axis=(1, 2, 3)), 1, rtol=1e-5)


@every_smoothing
def test_saliency_has_no_sign(smoothing):
    np.testing.assert_array_equal(
        saliency(-RESPONSE, smoothing=smoothing), saliency(RESPONSE, smoothing=smoothing)
    )


@every_smoothing
def test_channels_count_alike(smoothing):
    shuffled = RESPONSE[..., np.array([2, 0, 3, 1])]

    np.testing.assert_allclose(
        saliency(shuffled, smoothing=smoothing), saliency(RESPONSE, smoothing=smoothing), rtol=1e-5
    )


@every_smoothing
def test_guidance_is_an_inverse_temperature(smoothing):
    """It multiplies the response, and so the logarithm of the saliency."""
    np.testing.assert_allclose(
        log_saliency(5 * RESPONSE, smoothing), 5 * log_saliency(RESPONSE, smoothing), atol=1e-4
    )


@every_smoothing
def test_images_do_not_mix(smoothing):
    before = saliency(RESPONSE, smoothing=smoothing)
    after = saliency(RESPONSE.at[1].multiply(2.0), smoothing=smoothing)

    np.testing.assert_array_equal(before[0], after[0])
    assert (before[1] != after[1]).any()


@every_smoothing
def test_responses_of_bfloat16_are_smoothed_in_float32(smoothing):
    low = RESPONSE.astype(jnp.bfloat16)

    np.testing.assert_array_equal(
        saliency(low, smoothing=smoothing), saliency(low.astype(jnp.float32), smoothing=smoothing)
    )


@every_smoothing
def test_saliency_is_highest_where_the_response_is(smoothing):
    response = jnp.zeros((1, 8, 11, 4)).at[0, 5, 3].set(9.0)

    shares = np.array(saliency(response, smoothing=smoothing)[0, ..., 0])
    there = shares[5, 3]
    shares[3:8, 1:6] = 0

    assert there > 1.2 * shares.max()


def box_and_back(image):
    """4x4 means of an image in a rim of zeros, resized bilinearly: PyTorch's, in loops."""
    h, w = image.shape
    padded = np.pad(image, 1)
    means = np.array(
        [[padded[i : i + 4, j : j + 4].mean() for j in range(w - 1)] for i in range(h - 1)]
    )

    def sources(size, i):  # half-pixel centres: two neighbours and the share of the second
        place = min(max((i + 0.5) * (size - 1) / size - 0.5, 0), size - 2)
        low = int(place)
        return low, min(low + 1, size - 2), place - low

    result = np.empty((h, w))
    for i in range(h):
        for j in range(w):
            top, bottom, down = sources(h, i)
            left, right, along = sources(w, j)
            above = (1 - along) * means[top, left] + along * means[top, right]
            below = (1 - along) * means[bottom, left] + along * means[bottom, right]
            result[i, j] = (1 - down) * above + down * below
    return result


@pytest.mark.parametrize("size", [(6, 9), (2, 3), (7, 4)])
def test_the_box_is_that_of_the_released_code(size):
    response = 3 * normal((2, *size, 4))

    channels = np.abs(np.asarray(response, np.float64)).transpose(0, 3, 1, 2)
    smooth = np.array([np.mean([box_and_back(c) for c in image], axis=0) for image in channels])

    expected = smooth - smooth.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(log_saliency(response, "box"), expected, atol=1e-5)


def test_the_gaussian_preserves_constants():
    """Up to the edges, where the box has a rim."""
    constant = jnp.full((1, 6, 9, 4), 5.0)

    np.testing.assert_allclose(saliency(constant, smoothing="gaussian"), 1 / 54, rtol=1e-5)
    assert jnp.ptp(saliency(constant, smoothing="box")) > 0.001


def test_the_gaussian_has_sigma_one():
    """Neighbours weigh exp(-1/2) times as much as the centre, diagonal ones exp(-1)."""
    logits = log_saliency(jnp.zeros((1, 7, 9, 4)).at[0, 3, 4].set(10.0), "gaussian")[0]
    spread = logits - logits[0, 0]

    np.testing.assert_allclose(spread.sum(), 10, rtol=1e-4)
    for neighbour in ((2, 4), (4, 4), (3, 3), (3, 5)):
        np.testing.assert_allclose(spread[neighbour] / spread[3, 4], np.exp(-0.5), rtol=1e-4)
    for neighbour in ((2, 3), (4, 5)):
        np.testing.assert_allclose(spread[neighbour] / spread[3, 4], np.exp(-1), rtol=1e-4)
    assert (np.abs(spread[:, :3]) < 1e-5).all()


def test_ties_go_to_the_tdm():
    shares = saliency(RESPONSE)

    assert not noise_fusion.saliency_mask(shares, shares).any()


def test_the_mask_is_where_the_sdm_is_more_salient():
    tdm, sdm = saliency(RESPONSE), saliency(RESPONSE.at[1, 2, 3].multiply(50.0))

    mask = noise_fusion.saliency_mask(tdm, sdm)

    assert mask.shape == (2, 6, 9, 1)
    assert not mask[0].any()
    assert mask[1, 2, 3, 0]
    # What one pixel gains of a distribution the others lose.
    assert not mask[1, :, 7:].any()
    np.testing.assert_array_equal(noise_fusion.saliency_mask(sdm, tdm)[1, 0, 8], [True])
