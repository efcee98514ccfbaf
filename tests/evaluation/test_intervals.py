import numpy as np
import pytest

from fd_jax.evaluation.intervals import difference, mean, ratio


def test_the_interval_of_a_share_is_that_of_the_normal_approximation():
    scores = np.repeat([0.0, 1.0], 200)

    estimate = mean(scores)

    assert estimate.value == 0.5
    half = 1.96 * 0.5 / np.sqrt(400)
    assert estimate.low == pytest.approx(0.5 - half, abs=0.01)
    assert estimate.high == pytest.approx(0.5 + half, abs=0.01)


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(0)

    found = [mean(rng.normal(3, 1, 100)) for _ in range(100)]

    assert 90 <= sum(estimate.low <= 3 <= estimate.high for estimate in found) <= 100


def test_the_same_scores_have_the_same_interval():
    scores = np.random.default_rng(0).random(30)

    assert mean(scores) == mean(scores)
    assert mean(scores) != mean(scores, seed=1)


def test_scores_of_the_same_cells_are_compared_cell_by_cell():
    """Cells differ much, modes little: the interval is as narrow as the difference is certain."""
    b = np.random.default_rng(0).random(50)

    gain = difference(b + 0.1, b)
    share = ratio(0.8 * b, b)

    assert (gain.low, gain.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert (share.low, share.high) == (pytest.approx(0.8), pytest.approx(0.8))


@pytest.mark.parametrize("others", [np.zeros(5), -np.ones(5)])
def test_there_is_no_share_of_nothing(others):
    assert np.isnan(ratio(np.ones(5), others)).all()


def test_intervals_over_people_hold_the_truth_at_the_stated_rate():
    """People differ more than pictures of one; over pictures the interval would be too narrow."""
    rng = np.random.default_rng(0)
    people = np.repeat(np.arange(20), 16)
    held = {"people": 0, "pictures": 0}
    for _ in range(100):
        scores = rng.normal(0.5, 0.1, 20)[people] + rng.normal(0, 0.05, len(people))
        for name, groups in (("people", people.tolist()), ("pictures", None)):
            found = mean(scores, groups)
            held[name] += found.low <= 0.5 <= found.high

    assert 85 <= held["people"] <= 99  # percentiles of 20 people are a little too narrow
    assert held["pictures"] < 60


def test_groups_of_one_picture_are_pictures():
    scores = np.random.default_rng(0).random(30)

    assert mean(scores, list(range(30))) == mean(scores)


def test_groups_count_by_their_pictures():
    assert mean(np.array([1.0, 1, 1, 0]), ["a", "a", "a", "b"]).value == 0.75
    alone = mean(np.array([1.0, 0, 1]), ["a", "a", "a"])
    assert (alone.low, alone.high) == (alone.value, alone.value)


def test_what_was_not_measured_is_left_out():
    assert mean(np.array([np.nan, 1, 3]), ["a", "b", "b"]).value == 2
    assert np.isnan(mean(np.array([np.nan]))).all()
