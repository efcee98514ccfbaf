"""The image encoder of the bundled models learns from a recognizer of faces."""

import json

import numpy as np
import pytest

from fd_jax.architecture import CLIPVisionConfig
from fd_jax.assets import PEOPLE
from fd_jax.checkpoints.diffusers import read_config
from fd_jax.demo import train_encoder
from fd_jax.demo.appearance import SIZE
from fd_jax.demo.taught_faces import teach
from fd_jax.errors import InputError
from fd_jax.faces.recognizers import unit

CONFIG = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    image_size=32,
    patch_size=8,
    projection_dim=SIZE + 3,
)


class Colours:
    """Embeds a face by its mean colour."""

    name = description = "colours"

    def __call__(self, image, face):
        x1, y1, x2, y2 = face.box
        return unit(image[y1:y2, x1:x2].mean(axis=(0, 1)).astype(np.float32) - 100)


@pytest.fixture(scope="module")
def faces():
    pytest.importorskip("cv2")
    return teach([PEOPLE], "train", Colours(), num_averages=20)


def test_eyes_are_at_one_place(faces):
    """Each cut-out has its mask, whose corners at the top are empty, and the face inside of it."""
    real = faces.cutouts[~faces.is_average]
    assert len(real) >= 2
    assert faces.cutouts.shape[1:] == (128, 128, 4)
    masks = real[..., 3] > 127
    assert masks[:, 45:75, 50:78].all()  # between eyes and mouth
    assert not masks[:, :4, :4].any()
    np.testing.assert_allclose(np.linalg.norm(faces.embeds, axis=1), 1, atol=1e-5)


def test_averages_are_between_two_faces(faces):
    """With the first one's mask, so that hair and clothes are somebody's."""
    assert faces.is_average.any()
    real = faces.cutouts[~faces.is_average]
    for cutout in faces.cutouts[faces.is_average]:
        same = [face for face in real if np.array_equal(face[..., 3], cutout[..., 3])]
        assert len(same) == 1
        np.testing.assert_array_equal(cutout[100:, :20], same[0][100:, :20])
        assert np.abs(cutout[50:70, 55:73].astype(int) - same[0][50:70, 55:73]).mean() > 2


def test_it_learns(tmp_path, faces, monkeypatch):
    for name, value in (("_BATCH_SIZE", 8), ("_WARMUP_STEPS", 5), ("_LOG_EVERY", 20)):
        monkeypatch.setattr(train_encoder, name, value)
    train_encoder.train(
        [PEOPLE], tmp_path / "out", Colours(), CONFIG, num_steps=40, num_averages=20, seed=0
    )
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [20, 40]
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]
    assert read_config("image_encoder", tmp_path / "out") == CONFIG


def test_too_few_faces_or_numbers_are_refused(tmp_path, faces):
    with pytest.raises(InputError, match=r"there are \d+ faces, expected at least 99"):
        train_encoder.Components.of(faces, 99)
    small = CLIPVisionConfig(projection_dim=SIZE)
    with pytest.raises(InputError, match=f"projection_dim is {SIZE}, expected at least {SIZE + 1}"):
        train_encoder.train(
            [PEOPLE], tmp_path, Colours(), small, num_steps=1, num_averages=0, seed=0
        )
