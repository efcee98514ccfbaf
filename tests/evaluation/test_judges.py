import importlib.util
import sys

import numpy as np
import pytest

from fd_jax.assets import PEOPLE
from fd_jax.demo.grid import compose_small, read_subjects
from fd_jax.demo.painters import SCENES
from fd_jax.demo.scoring import confusable
from fd_jax.errors import InputError
from fd_jax.evaluation.judges import (
    FACE_MODELS,
    ClipIdentity,
    FaceRecognizer,
    check_face_models,
    person_view,
)


@pytest.fixture(scope="module")
def subjects():
    return read_subjects([PEOPLE], 8)


def test_one_person_is_the_whole_picture():
    picture = np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3)

    np.testing.assert_array_equal(person_view(picture, 0, 1), picture)


def test_of_two_people_each_has_a_side_that_stands_on_the_bottom():
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)

    left, right = person_view(picture, 0, 2), person_view(picture, 1, 2)

    assert left.shape == right.shape == (30, 30, 3)
    np.testing.assert_array_equal(left[:, 4:26], picture[10:, :22])
    np.testing.assert_array_equal(right[:, 4:26], picture[10:, 18:])
    np.testing.assert_array_equal(left[:, 0], picture[10:, 0])
    np.testing.assert_array_equal(right[:, -1], picture[10:, -1])


def test_views_of_mirrored_pictures_are_mirrored():
    picture = np.random.default_rng(0).integers(0, 256, (41, 41, 3), dtype=np.uint8)

    mirrored = person_view(picture[:, ::-1], 1, 2)[:, ::-1]

    part = np.s_[:, 5:-5]
    np.testing.assert_array_equal(mirrored[part], person_view(picture, 0, 2)[part])


def test_views_hold_whom_they_are_of(subjects):
    """People of one colour each: a person_view has more of its own than of the neighbour."""
    red, blue = (
        subjects[i].cutout._replace(
            pixels=np.full_like(subjects[i].cutout.pixels, 0) + np.uint8(colour)
        )
        for i, colour in ((0, (255, 0, 0)), (1, (0, 0, 255)))
    )
    for seed in range(4):
        picture = compose_small(SCENES[11], [red, blue], np.random.default_rng(seed), 64)
        is_red = (picture[..., 0] > 150) & (picture[..., 1] < 50)
        top = np.flatnonzero(is_red.any(axis=1))[0]
        assert top >= 64 - round(0.75 * 64)  # heads are not cut off
        for place, own, other in ((0, 0, 2), (1, 2, 0)):
            shown = person_view(picture, place, 2) > 150
            assert shown[..., own].sum() > 1.5 * shown[..., other].sum()


def test_a_photograph_is_most_similar_to_itself(pipe, subjects):
    photographs = [subject.photograph for subject in subjects]

    cosines = ClipIdentity(pipe, photographs)(photographs)

    assert cosines.shape == (8, 8)
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
    assert (cosines.argmax(axis=1) == np.arange(8)).all()
    assert cosines[~np.eye(8, dtype=bool)].mean() < 0  # the common part is gone


def test_rivals_have_the_same_noun():
    expected = [[1, 0, 1], [1, 1, 1], [1, 0, 1]]

    np.testing.assert_array_equal(confusable(["man", "boy", "man"]), np.array(expected) == 1)


def test_a_folder_without_judges_is_refused(tmp_path):
    detector, recognizer = FACE_MODELS.values()
    with pytest.raises(InputError, match=f"no {detector} and no {recognizer}"):
        check_face_models(tmp_path)
    (tmp_path / detector).touch()
    with pytest.raises(InputError, match=f"holds no {recognizer}"):
        check_face_models(tmp_path)


def test_judges_without_opencv_are_refused(monkeypatch, tmp_path):
    for name in FACE_MODELS.values():
        (tmp_path / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InputError, match="pip install opencv-python-headless"):
        check_face_models(tmp_path)


class FakeOpenCV:
    """Finds the faces that it is told of; the feature of a face is its last-but-one number."""

    __spec__ = True

    def __init__(self):
        self.faces = {}  # by the blue level of the picture, as rows of x, width, who, clearness
        self.FaceDetectorYN = self.FaceRecognizerSF = self

    def create(self, *_):
        return self

    def setInputSize(self, size):
        assert size == (320, 320)

    def detect(self, image):
        rows = self.faces.get(int(image[0, 0, 0]), [])
        faces = np.array([[x, 0, width, 9, who, clear] for x, width, who, clear in rows], float)
        return len(rows), faces if rows else None

    def alignCrop(self, _, face):
        return face

    def feature(self, face):
        return np.eye(3, dtype=np.float32)[None, int(face[4])] * 7


@pytest.fixture
def face_recognizer(monkeypatch, tmp_path):
    """Of three people, who are 0, 1 and 2, and pictures of levels 10, 11, ... ."""
    for name in FACE_MODELS.values():
        (tmp_path / name).touch()
    opencv = FakeOpenCV()
    monkeypatch.setitem(sys.modules, "cv2", opencv)
    opencv.faces = {who: [(100, 90, who, 0.9)] for who in range(3)}
    opencv.faces |= {
        10: [(200, 80, 0, 0.8), (20, 80, 2, 0.7)],
        11: [(10, 50, 1, 0.6), (60, 90, 0, 0.9)],
        12: [(-90, 60, 1, 0.9)],
    }
    return FaceRecognizer(tmp_path, [level(who) for who in range(3)], ["Ann", "Bob", "Cid"])


def level(blue):
    return np.full((64, 64, 3), blue, np.uint8)


def test_of_two_faces_the_left_one_is_the_first_persons(face_recognizer):
    np.testing.assert_array_equal(face_recognizer(level(10), 2), [[0, 0, 1], [1, 0, 0]])


def test_the_clearest_face_counts_and_an_absent_one_does_not(face_recognizer):
    np.testing.assert_array_equal(face_recognizer(level(11), 1), [[1, 0, 0]])
    np.testing.assert_array_equal(face_recognizer(level(11), 2), [[1, 0, 0], [np.nan] * 3])
    assert np.isnan(face_recognizer(level(12), 1)).all()  # outside the picture
    assert np.isnan(face_recognizer(level(13), 2)).all()


def test_a_photograph_without_a_face_is_refused(face_recognizer, tmp_path):
    with pytest.raises(InputError, match="YuNet finds no face in the photograph of Dan"):
        FaceRecognizer(tmp_path, [level(99)], ["Dan"])
