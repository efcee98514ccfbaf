"""Greedy and best matching, on matrices made by hand."""

import numpy as np
import pytest

from fd_jax.faces.matching import are_confused, lowest, match_best, match_greedily


def matrix(*rows):
    return np.array(rows, np.float64).reshape(len(rows), -1)


# Cosines of faces (rows) and people, then the face of each person, greedily and best.
MATRICES = {
    "clear": (matrix([0.9, 0.1], [0.2, 0.8]), [0, 1], [0, 1]),
    "crossed": (matrix([0.1, 0.9], [0.8, 0.2]), [1, 0], [1, 0]),
    # Greedy takes 0.9 and is left with 0.1; the best sum is 0.8 + 0.7.
    "greedy is worse": (matrix([0.9, 0.8], [0.7, 0.1]), [0, 1], [1, 0]),
    "a face too many": (matrix([0.1, 0.2], [0.9, 0.3], [0.4, 0.6]), [1, 2], [1, 2]),
    "a face too few": (matrix([0.3, 0.6, 0.1]), [-1, 0, -1], [-1, 0, -1]),
    "negative": (matrix([-0.9, -0.1], [-0.5, -0.2]), [1, 0], [1, 0]),
    "one": (matrix([0.4]), [0], [0]),
}


@pytest.mark.parametrize("case", MATRICES)
def test_faces_are_matched(case):
    cosines, greedy, best = MATRICES[case]

    assert match_greedily(cosines).tolist() == greedy
    assert match_best(cosines).tolist() == best


def test_the_lowest_pair_counts():
    cosines, greedy, best = MATRICES["greedy is worse"]

    assert lowest(cosines, np.array(greedy)) == pytest.approx(0.1)
    assert lowest(cosines, np.array(best)) == pytest.approx(0.7)


def test_a_missing_face_is_0_and_so_is_a_negative_cosine():
    assert lowest(MATRICES["a face too few"][0], np.array([-1, 0, -1])) == 0
    assert lowest(matrix([-0.4]), np.array([0])) == 0


def test_greedy_is_never_above_the_best_sum():
    rng = np.random.default_rng(0)
    for _ in range(50):
        cosines = rng.uniform(-1, 1, (rng.integers(1, 6), rng.integers(1, 6)))
        sums = []
        for faces in (match_greedily(cosines), match_best(cosines)):
            people = np.flatnonzero(faces >= 0)
            assert len(people) == min(cosines.shape)
            assert len(set(faces[people])) == len(people)  # each face once
            sums.append(cosines[faces[people], people].sum())
        assert sums[0] <= sums[1] + 1e-9


def test_two_faces_of_one_person_are_confused():
    assert are_confused(matrix([0.9, 0.1], [0.8, 0.2]))
    assert not are_confused(matrix([0.9, 0.1], [0.1, 0.2]))
