"""The judges of the bundled models."""

import numpy as np
import pytest

from fd_jax.assets import PEOPLE
from fd_jax.demo.grid import compose_small, read_subjects
from fd_jax.demo.judges import ClipIdentity, confusable, person_view
from fd_jax.demo.painters import SCENES


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
    photographs = [subject.person.photograph for subject in subjects]

    cosines = ClipIdentity(pipe, photographs)(photographs)

    assert cosines.shape == (8, 8)
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-5)
    assert (cosines.argmax(axis=1) == np.arange(8)).all()
    assert cosines[~np.eye(8, dtype=bool)].mean() < 0  # the common part is gone


def test_rivals_have_the_same_noun():
    expected = [[1, 0, 1], [1, 1, 1], [1, 0, 1]]

    np.testing.assert_array_equal(confusable(["man", "boy", "man"]), np.array(expected) == 1)
