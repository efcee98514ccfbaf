import numpy as np
import pytest
from PIL import Image

from fd_jax.data import transforms
from fd_jax.data.photographs import subject_pixels


def photograph(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(fine)


def blocks(height, width):
    """A map with the segments 3 and 7 side by side, and its image, in which they are grey."""
    segment_map = np.zeros((height, width), np.uint8)
    segment_map[height // 4 : -height // 4, width // 5 : width // 2] = 3
    segment_map[height // 4 : -height // 4, width // 2 : -width // 5] = 7
    return segment_map, np.repeat(segment_map[..., None] * 30, 3, axis=2)


def as_released(pixels, resolution):
    """What torchvision makes of a padded square, level for level."""
    return np.round(subject_pixels(pixels, resolution) * 255)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (41, 24), (24, 41), (32, 32), (8, 9), (9, 8)])
def test_any_image_becomes_a_square(size):
    image = transforms.fit_image(photograph(*size), 16)
    segment_map = transforms.fit_map(blocks(*size)[0], 16)

    assert (image.shape, image.dtype) == ((16, 16, 3), np.uint8)
    assert (segment_map.shape, segment_map.dtype) == ((16, 16), np.uint8)
    assert image.flags.c_contiguous
    assert segment_map.flags.c_contiguous


@pytest.mark.parametrize("resolution", [10, 24, 37, 50])
def test_squares_are_within_one_level_of_the_released_code(resolution):
    image = photograph(37, 37)

    found = transforms.fit_image(image, resolution)

    assert np.abs(found - as_released(image, resolution)).max() <= 1


@pytest.mark.parametrize("height", [25, 30, 36, 48])
def test_portraits_are_within_one_level_of_the_released_code(height):
    image = photograph(height, 24)

    # As wide as asked for, so that padding and shrinking is all that happens.
    found = transforms.fit_image(image, 24)

    assert np.abs(found - as_released(image, 24)).max() <= 1


@pytest.mark.parametrize("height", [25, 30, 36, 48])
def test_maps_of_portraits_equal_the_released_code(height):
    segment_map, _ = blocks(height, 24)
    pixels = np.repeat(segment_map[..., None], 3, axis=2)

    found = transforms.fit_map(segment_map, 24)

    np.testing.assert_array_equal(found, as_released(pixels, 24)[..., 0])


def test_landscapes_are_cropped_at_the_centre():
    image = photograph(20, 31)
    np.testing.assert_array_equal(transforms.fit_image(image, 20), image[:, 5:25])


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (48, 48), (41, 57)])
def test_the_map_follows_the_image(size):
    segment_map, image = blocks(*size)
    for flip in (False, True):
        grey = transforms.fit_image(image, 32, flip=flip)[..., 0]
        fitted = transforms.fit_map(segment_map, 32, flip=flip)

        # At borders the image is blurred, and nearest pixels lie up to half a pixel beside.
        assert (np.abs(fitted * 30.0 - grey) < 2).mean() > 0.8
        inside = np.isin(grey, (0, 90, 210))
        assert (fitted[inside] * 30 == grey[inside]).mean() > 0.98


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (40, 40)])
def test_flipping_mirrors(size):
    image, (segment_map, _) = photograph(*size), blocks(*size)
    for fit, array in ((transforms.fit_image, image), (transforms.fit_map, segment_map)):
        np.testing.assert_array_equal(fit(array, 16, flip=True), fit(array, 16)[:, ::-1])


def test_maps_take_the_nearest_pixels():
    segment_map = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(transforms.fit_map(segment_map, 4), segment_map[::2, ::2])
    np.testing.assert_array_equal(transforms.fit_map(segment_map, 8), segment_map)


def test_noise_is_uniform_below_255():
    found = transforms.noise(np.random.default_rng(0), 300, 255)

    counts = np.bincount(found.ravel(), minlength=256)
    assert found.shape == (300, 255, 3)
    assert counts[255] == 0
    assert np.abs(counts[:255] - 900).max() < 5 * 30


@pytest.mark.parametrize("size", [(9, 5), (5, 9), (7, 7), (40, 22), (30, 61), (1, 9)])
def test_crops_are_within_one_level_of_the_released_code(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)

    found = transforms.pad_and_resize(pixels, 16)

    assert np.abs(found - as_released(pixels, 16)).max() <= 1


def test_top_square():
    pixels = photograph(9, 5)
    np.testing.assert_array_equal(transforms.top_square(pixels), pixels[:5])
    np.testing.assert_array_equal(transforms.top_square(pixels[:3]), pixels[:3])


def test_augmentation_depends_on_the_generator_alone():
    pixels = photograph(24, 24)
    first, again, other = (
        transforms.augment(pixels, np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first.shape, first.dtype) == ((24, 24, 3), np.uint8)
    assert first.flags.c_contiguous


def test_how_often_a_subject_is_augmented():
    pixels, rng = photograph(8, 8), np.random.default_rng(0)

    results = [transforms.augment(pixels, rng) for _ in range(2000)]

    grey = [np.ptp(result.astype(int), axis=2).max() == 0 for result in results]
    untouched = [np.array_equal(result, pixels) for result in results]
    assert 0.08 < np.mean(grey) < 0.12
    assert 0.008 < np.mean(untouched) < 0.022  # 0.25 * 0.5 * 0.5 * 0.9 * 0.5 * 0.5 is 0.014


def test_blur_spreads_and_keeps_the_sum():
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[4, 4] = 255

    blurred = transforms.gaussian_blur(pixels, 1.0)

    assert abs(int(blurred[..., 0].sum()) - 255) < 13  # roundings
    assert (blurred[2:7, 2:7] > 0).all()
    assert blurred.sum() == blurred[2:7, 2:7].sum()
    np.testing.assert_array_equal(blurred, blurred.swapaxes(0, 1))
    flat = np.full((6, 7, 3), 93, np.uint8)
    np.testing.assert_array_equal(transforms.gaussian_blur(flat, 2.0), flat)


def test_bending_moves_pixels():
    pixels = photograph(6, 6)
    shift = np.zeros((2, 6, 6), np.float32)
    np.testing.assert_array_equal(transforms.bend(pixels, shift), pixels)

    shift[0], shift[1] = 2, -1
    moved = transforms.bend(pixels, shift)

    np.testing.assert_array_equal(moved[:4, 1:], pixels[2:, :5])
    assert moved[4:].max() == moved[:, 0].max() == 0

    shift[:] = 100
    assert transforms.bend(pixels, shift).max() == 0


def test_elastic_shifts_are_smooth_and_small():
    shift = transforms.elastic_shift(np.random.default_rng(0), 256)

    # Uniform noise after a Gaussian of sigma 5: 25 / sqrt(3) / (2 * sqrt(pi) * 5).
    assert shift.std() == pytest.approx(0.81, rel=0.1)
    assert np.abs(np.diff(shift, axis=2)).max() < 0.6


def test_hues_turn():
    red = Image.new("RGB", (2, 2), (200, 0, 0))
    assert transforms.shift_hue(red, 0.0).getpixel((0, 0)) == (200, 0, 0)
    turned = transforms.shift_hue(red, 1 / 3).getpixel((0, 0))
    np.testing.assert_allclose(turned, (0, 200, 0), atol=6)
    turned = transforms.shift_hue(red, -1 / 3).getpixel((0, 0))
    np.testing.assert_allclose(turned, (0, 0, 200), atol=6)
