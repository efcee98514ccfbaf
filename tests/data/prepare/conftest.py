"""Photographs that the tests of `prepare` share."""

import numpy as np
import pytest
from PIL import Image

from fd_jax.assets import PEOPLE


@pytest.fixture(scope="session")
def portrait():
    """A function: pixels and mask of one of the bundled people, of a height."""

    def load(name, height=256):
        image = Image.open(PEOPLE / name / f"{name}.jpg").convert("RGB")
        mask = Image.fromarray(np.load(PEOPLE / name / f"{name}.npy") * np.uint8(255))
        size = height, height
        return np.asarray(image.resize(size)), np.asarray(mask.resize(size)) > 127

    return load


@pytest.fixture(scope="session")
def pair(portrait):
    """A photograph of two people, the right one before the left one, and its segment map."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(90, 170, (6, 8, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC))
    segment_map = np.zeros((384, 512), np.uint8)
    for value, name, height, left in ((1, "P005", 256, 40), (2, "P003", 300, 190)):
        pixels, mask = portrait(name, height)
        rows, columns = slice(384 - height, 384), slice(left, left + height)
        image[rows, columns][mask] = pixels[mask]
        segment_map[rows, columns][mask] = value
    return image, segment_map
