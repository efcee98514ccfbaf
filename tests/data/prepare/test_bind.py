"""Who is who: phrases and faces, by words of position and by order."""

import pytest

from fd_jax.data.prepare.bind import bind
from fd_jax.data.prepare.faces import Face
from fd_jax.data.prepare.left_out import LeftOut


def faces(*heights):
    """Faces in a row, given in another order than from left to right."""
    row = [Face((100 * i, 50, 100 * i + 50, 50 + height), 0.9) for i, height in enumerate(heights)]
    return row[::-1]


def bound(caption, *heights):
    """Phrase and place from the left of each person that is bound."""
    binding = bind(caption, faces(*heights))
    return [(caption[p.start : p.end], i) for p, i in binding.bound]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man and a woman", [("a man", 0), ("a woman", 1)]),
        ("a man on the right and a woman", [("a man", 1), ("a woman", 0)]),
        ("a man and a woman on the left", [("a man", 1), ("a woman", 0)]),
        ("on the right a man, on the left a woman", [("a man", 1), ("a woman", 0)]),
        ("On the right is a man and on the left is a woman", [("a man", 1), ("a woman", 0)]),
        ("On the right, a man; on the left, a woman", [("a man", 1), ("a woman", 0)]),
        ("the right man and the left woman", [("the right man", 1), ("the left woman", 0)]),
        ("a man (right) and a woman (left)", [("a man", 1), ("a woman", 0)]),
        ("from right to left: a man and a woman", [("a man", 1), ("a woman", 0)]),
        ("a man standing to the right of a woman", [("a man", 1), ("a woman", 0)]),
        ("a man looking to the right and a woman", [("a man", 0), ("a woman", 1)]),
        ("a man to the right of a tree and a woman", [("a man", 0), ("a woman", 1)]),
        ("the man on the right side of the photo and a boy", [("the man", 1), ("a boy", 0)]),
    ],
)
def test_two_people(caption, expected):
    assert bound(caption, 60, 60) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man, a woman and a boy", [0, 1, 2]),
        ("a man in the middle, a woman and a boy", [1, 0, 2]),
        ("a man second from the right, a woman and a boy", [1, 0, 2]),
        ("a boy in the front, a man and a woman", [1, 0, 2]),
        ("a man and a woman with a girl in the background", [0, 1, 2]),
    ],
)
def test_three_people(caption, expected):
    assert [place for _, place in bound(caption, 50, 80, 30)] == expected


def test_people_named_at_once_are_counted_only():
    assert bound("two women and a man on the left", 60, 60, 60) == [("a man", 0)]


def test_bystanders_may_go_unnamed():
    binding = bind("a photo of a woman", faces(20, 100, 25))

    assert [face.height for face in binding.faces] == [100]
    assert binding.notes == ["2 bystanders with small faces"]


@pytest.mark.parametrize(
    ("caption", "heights", "reason"),
    [
        ("a house", (60,), "names nobody"),
        ("a man and a woman", (60,), "other number of people"),
        ("a man", (60, 60), "other number of people"),
        ("two women", (60, 60), "names several at once"),
        ("two women and a man", (60, 60, 60), "cannot be bound"),
        ("a man on the left and a woman on the left", (60, 60), "cannot be bound"),
        ("a man in the front and a woman", (60, 62), "cannot be bound"),
        ("a man, on the left, a woman", (60, 60), "cannot be bound"),
        ("a man with a dog on the right and a woman", (60, 60), "cannot be bound"),
        ("a man in the middle and a woman", (60, 60), "cannot be bound"),
    ],
)
def test_nothing_is_guessed(caption, heights, reason):
    with pytest.raises(LeftOut) as caught:
        bind(caption, faces(*heights))

    assert caught.value.reason == reason
