import numpy as np
import pytest

from fd_jax.demo.painters import SCENES, backdrop, paint


def grids(scene, count=6):
    """Mean colours of 4 x 4 fields of several pictures of a scene."""
    pictures = [paint(scene, np.random.default_rng(i), 64) for i in range(count)]
    return np.stack(pictures).reshape(count, 4, 16, 4, 16, 3).mean(axis=(2, 4)).reshape(count, -1)


@pytest.mark.parametrize("side", [8, 33, 128])
@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_every_scene_paints_any_size(scene, side):
    first, again = (paint(scene, np.random.default_rng(0), side) for _ in range(2))
    other = paint(scene, np.random.default_rng(1), side)

    assert first.shape == (side, side, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 1


def test_there_are_enough_scenes_and_no_phrase_is_of_two():
    phrases = [phrase for scene in SCENES for phrase in scene.phrases]

    assert len(SCENES) >= 16
    assert len({scene.name for scene in SCENES}) == len(SCENES)
    assert len(set(phrases)) == len(phrases)


def test_scenes_look_clearly_different():
    """The nearest mean of all scenes is nearly always the own one, by coarse colours alone."""
    seen = np.stack([grids(scene) for scene in SCENES])
    means = seen[:, :3].mean(axis=1)
    distance = np.linalg.norm(seen[:, 3:, None] - means, axis=-1)
    share = np.mean(distance.argmin(axis=-1) == np.arange(len(SCENES))[:, None])

    assert share > 0.9


def test_backdrops_are_walls_and_scenes():
    drawn = [backdrop(np.random.default_rng(i), 32) for i in range(40)]
    is_plain = [np.ptp(picture, axis=1).max() == 0 for picture in drawn]

    assert all(picture.shape == (32, 32, 3) for picture in drawn)
    assert 8 < sum(is_plain) < 32
