"""The judge of faces, with photographs of the bundled people and a recognizer made by hand."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fd_jax.assets import PEOPLE
from fd_jax.data.photographs import load_photograph
from fd_jax.data.prepare.faces import find_faces, opencv
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Case, Person
from fd_jax.evaluation.judges import FaceJudge, copy_paste
from fd_jax.faces.recognizers import SFACE, SFace, align, load_recognizer, look


def person(name, **others):
    path = PEOPLE / name / f"{name}.jpg"
    return Person(name, "person", load_photograph(path), **others)


class BySize:
    """Takes faces of a height for those of a person: larger than 200, larger than 100, others."""

    name = "size"
    description = "by size"

    def __call__(self, image, face):
        return np.eye(3)[(face.height <= 200) + (face.height <= 100)]


def case(*people):
    return Case("kind", 0, 0, 0, people, "a man", 0)


def photograph(*sizes, side=1024):
    """Photographs of these sides in a row."""
    wall = Image.new("RGB", (side, side), (120, 140, 160))
    x = 0
    for size, name in zip(sizes, ("P003", "P005", "P006"), strict=False):
        wall.paste(Image.fromarray(person(name).photograph).resize((size, size)), (x, 100))
        x += size
    return np.array(wall)


@pytest.fixture(scope="module")
def judge():
    """Of two people, one with a large face in the photograph, one with a small one."""
    large = Person("large", "man", photograph(500))
    small = Person("small", "man", photograph(150))
    return FaceJudge([large, small], [BySize()])


def test_one_person_is_compared_by_the_clearest_face(judge):
    found = judge([photograph(500), photograph(150), photograph()], [case(0)] * 3)

    assert found["faces"].tolist() == [1, 1, 0]
    assert found["size"].tolist() == [1, 0, 0]


def test_two_people_are_matched_with_two_faces(judge):
    both, same, one = photograph(500, 150), photograph(500, 500), photograph(500)

    found = judge([both, same, one], [case(0, 1)] * 3)

    assert found["faces"].tolist() == [1, 1, 0]
    assert found["size"].tolist() == [1, 0, 0]  # the lowest pair; a missing face is 0
    assert found["size best"].tolist() == [1, 0, 0]
    assert found["size confused"][:2].tolist() == [0, 1]
    assert np.isnan(found["size confused"][2])


def test_a_face_too_many_is_counted(judge):
    found = judge([photograph(500, 150, 300)], [case(0, 1)])

    assert found["faces"].tolist() == [0]
    assert found["size"].tolist() == [1]


def test_a_photograph_without_a_face_is_refused():
    with pytest.raises(InputError, match="there is no face in the photograph of nobody"):
        FaceJudge([Person("nobody", "man", photograph())], [BySize()])


def test_copies_are_told_from_likenesses():
    reference, other = np.eye(3)[0], np.eye(3)[1]
    between = (reference + other) / np.sqrt(2)

    assert copy_paste(reference, reference, other[None]) == pytest.approx(1)
    assert copy_paste(other, reference, other[None]) == pytest.approx(-1)
    assert copy_paste(between, reference, other[None]) == pytest.approx(0, abs=1e-6)


def test_copy_paste_needs_another_photograph(judge):
    assert "size copied" not in judge.measures

    two = Person("two", "man", photograph(500), (photograph(150),))
    found = FaceJudge([two], [BySize()])([photograph(500)], [case(0)])
    assert found["size copied"].tolist() == [pytest.approx(1)]


def test_small_pictures_are_enlarged_before_faces_are_looked_for():
    small = np.array(Image.fromarray(person("P003").photograph).resize((96, 96)))

    image, faces = look(small)

    assert image.shape == (320, 320, 3)
    assert len(faces) == 1


def test_aligned_faces_have_their_landmarks_in_place():
    image = person("P003").photograph
    [face] = find_faces(image)

    [again] = find_faces(np.pad(align(image, face, 112), ((60, 60), (60, 60), (0, 0))))

    eyes = np.array(again.landmarks[:4]) - 60
    np.testing.assert_allclose(eyes, [38.3, 51.7, 73.5, 51.5], atol=8)


@pytest.mark.parametrize("name", [SFACE, "other.onnx"])
def test_a_file_that_is_no_recognizer_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"no ONNX file")

    with pytest.raises(InputError, match=r"face recognizer .* (is no|needs the package)"):
        load_recognizer(tmp_path / name)
    with pytest.raises(InputError, match=f"{SFACE} does not exist"):
        load_recognizer(tmp_path / "nowhere" / SFACE)


@pytest.mark.skipif("FD_JUDGES" not in os.environ, reason="FD_JUDGES is no folder of SFace")
def test_sface_equals_opencv():
    """The embedding and the cosine are those of cv2.FaceRecognizerSF on YuNet's own rows."""
    cv2 = opencv()
    path = Path(os.environ["FD_JUDGES"]) / SFACE
    theirs = cv2.FaceRecognizerSF.create(str(path), "")
    ours, found, expected = SFace(path), [], []
    for name in ("P003", "P005"):
        image = person(name).photograph
        bgr = np.ascontiguousarray(image[..., ::-1])
        [face] = find_faces(image)
        row = np.array([[*face.box, *face.landmarks, face.score]], np.float32)
        expected.append(theirs.feature(theirs.alignCrop(bgr, row)).copy())
        found.append(ours(image, face))
    np.testing.assert_allclose(
        found[0] @ found[1], theirs.match(expected[0], expected[1], 0), atol=1e-6
    )
    for vector, theirs_vector in zip(found, expected, strict=True):
        np.testing.assert_allclose(vector, theirs_vector[0] / np.linalg.norm(theirs_vector), 1e-6)
