import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.demo import scene_classifier
from fd_jax.demo.painters import SCENES, paint
from fd_jax.demo.scene_classifier import load_or_train, soften

THREE = SCENES[1:4]
FEW = {"num_pictures": 40, "num_steps": 60}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("classifier") / "scenes.safetensors"


@pytest.fixture(scope="module")
def trained(path):
    return load_or_train(path, THREE, 32, **FEW)


@pytest.fixture
def trains_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(scene_classifier, "_train", fail)


def pictures(number=30, side=32):
    made = [paint(THREE[i % 3], np.random.default_rng(i), side) for i in range(number)]
    return made, np.arange(number) % 3


def test_it_learns_scenes_in_seconds(trained):
    made, scenes = pictures()

    assert trained.accuracy > 0.8
    probabilities = trained(made)
    assert np.mean(probabilities.argmax(axis=1) == scenes) > 0.8
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_pictures_of_other_sizes_are_reduced(trained):
    made, scenes = pictures(side=96)

    assert np.mean(trained(made).argmax(axis=1) == scenes) > 0.8


@pytest.mark.usefixtures("trains_nothing")
def test_it_is_read_where_it_was_trained_before(trained, path):
    again = load_or_train(path, THREE, 32, **FEW)

    assert again.accuracy == trained.accuracy
    made, _ = pictures()
    np.testing.assert_array_equal(again(made), trained(made))


@pytest.mark.parametrize(
    "change", [{"scene_list": SCENES[:3]}, {"side": 16}, {"num_steps": 61}, "damage"]
)
@pytest.mark.usefixtures("trained", "trains_nothing")
def test_what_does_not_fit_is_trained_again(path, tmp_path, change):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes()[: 100 if change == "damage" else None])
    settings = {"scene_list": THREE, "side": 32, **FEW}

    with pytest.raises(AssertionError, match="trained again"):
        load_or_train(copy, **settings | ({} if change == "damage" else change))


def test_softened_images_differ_and_stay_in_range():
    images = jnp.asarray(np.random.default_rng(0).random((6, 16, 16, 3), np.float32))

    softened = np.asarray(jax.jit(soften)(jax.random.key(0), images))

    assert softened.shape == images.shape
    assert softened.min() >= 0
    assert softened.max() <= 1
    assert (softened != images).reshape(6, -1).any(axis=1).all()
