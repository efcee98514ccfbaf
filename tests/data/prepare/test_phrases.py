"""Which words of a caption name people, and how many."""

import pytest

from fd_jax.data.prepare.phrases import find_phrases


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a photo of a woman", {"a woman": 1}),
        (
            "A young, smiling man and his wife by a house",
            {"A young, smiling man": 1, "his wife": 1},
        ),
        ("a young and beautiful woman", {"a young and beautiful woman": 1}),
        ("portrait of sks woman", {"sks woman": 1}),
        ("a police officer and a firefighter", {"a police officer": 1, "a firefighter": 1}),
        ("A woman doctor holding a baby", {"A woman doctor": 1, "a baby": 1}),
        ("a man's face", {"a man": 1}),
        ("1girl, solo, long hair", {"1girl": 1}),
        ("2girls, sitting", {"2girls": 2}),
        ("two women and a man", {"two women": 2, "a man": 1}),
        ("a group of three friends", {"a group of three friends": 3}),
        ("a family of four", {"a family": 4}),
        ("a couple kissing", {"a couple": 2}),
        ("some people on a street", {"some people": None}),
    ],
)
def test_phrases_end_with_their_nouns(caption, expected):
    phrases = find_phrases(caption)

    assert {caption[p.start : p.end]: p.number for p in phrases} == expected


@pytest.mark.parametrize(
    "caption",
    [
        "a landscape",
        "no people",
        "a street without people",
        "a couple of apples",
        "Family portrait",
    ],
)
def test_things_are_nobody(caption):
    assert find_phrases(caption) == []


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a man in a hat. The man smiles.", ["a man"]),
        ("a woman and a man; both people smile", ["a woman", "a man"]),
        ("the man on the left and the man on the right", ["the man", "the man"]),
        ("a woman and another woman", ["a woman", "another woman"]),
        ("a man who is a doctor", ["a man"]),
        ("a woman dressed as a nurse", ["a woman"]),
        ("a statue of a man next to a girl", ["a girl"]),
        ("a baby girl with a man bun", ["a baby girl"]),
        ("there is a man", ["a man"]),
    ],
)
def test_each_person_is_named_once(caption, words):
    assert [caption[p.start : p.end] for p in find_phrases(caption)] == words


def test_further_nouns_name_people():
    caption = "Anna and Ben in Paris"

    assert find_phrases(caption) == []
    assert [p.noun for p in find_phrases(caption, ["Anna", "ben"])] == ["anna", "ben"]
