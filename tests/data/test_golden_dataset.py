"""Parity of training examples with the released PyTorch code."""

import numpy as np
import pytest

from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import make_example
from fd_jax.data.ffhq.source import open_source

pytestmark = pytest.mark.golden


@pytest.fixture(scope="module")
def arrays(goldens):
    return np.load(goldens / "dataset" / "dataset.npz")


@pytest.fixture(scope="module")
def source(goldens):
    return open_source([goldens / "dataset" / "ffhq"], "all")


@pytest.fixture(scope="module")
def pairs(arrays, source):
    """Each item as made here, with the arrays of the released code."""
    tokenizer = load_tokenizer(TOKENIZER)
    background = np.ascontiguousarray(arrays["background"].transpose(1, 2, 0))
    found = []
    for i in range(len(source)):
        expected = {
            name.removeprefix(f"{i}:"): arrays[name]
            for name in arrays.files
            if name.startswith(f"{i}:")
        }
        config = DataConfig(
            resolution=expected["pixel_values"].shape[-1],
            subject_resolution=expected["object_pixel_values"].shape[-1],
        )
        example = make_example(
            source[i],
            config,
            tokenizer,
            np.random.default_rng(0),
            training=False,
            background=background,
        )
        found.append((example, expected))
    assert found
    return found


def test_images_are_within_one_grey_level(pairs):
    for example, expected in pairs:
        pixels = (expected["pixel_values"].transpose(1, 2, 0) + 1) * 127.5
        assert np.abs(example.image - pixels).max() < 1.01


def test_subjects_are_within_one_grey_level(pairs):
    for example, expected in pairs:
        pixels = expected["object_pixel_values"].transpose(0, 2, 3, 1) * 255
        assert np.abs(example.subject_pixels - pixels).max() < 1.01


def test_masks_are_equal(pairs):
    for example, expected in pairs:
        masks = example.segment_map == example.subject_ids[:, None, None]
        masks &= example.has_subject[:, None, None]
        np.testing.assert_array_equal(masks, expected["object_segmaps"])


def test_tokens_and_subjects_are_equal(pairs, source):
    for example, expected in pairs:
        np.testing.assert_array_equal(example.input_ids, expected["input_ids"][0])
        has_subject = expected["image_token_idx_mask"][0]
        np.testing.assert_array_equal(example.has_subject, has_subject)
        np.testing.assert_array_equal(example.subject_token_index, expected["image_token_idx"][0])
        assert example.has_subject.sum() == expected["num_objects"]
        assert int(source.ids[example.index]) == expected["image_ids"]
