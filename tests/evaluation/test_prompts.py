"""The set of prompts, and files of others: read as text, JSON or literals, never executed."""

import json
from collections import Counter

import numpy as np
import pytest

from fd_jax.data.captions import SUBJECT_MARKER
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Person, make_cases
from fd_jax.evaluation.people import read_people
from fd_jax.evaluation.prompts import PROMPTS, Prompt, read_prompts
from fd_jax.images.png import write_png

BLACK = np.zeros((8, 8, 3), np.uint8)
PYTHON = """
import os
raise SystemExit("executed")
IMAGE_TO_GENDER_EVAL = {"anna": "woman", "ben": "man"}
IMAGE_TO_GENDER_DEMO = {"carl": "man"}

def get_style_prompts(class_token, unique_token):
    prompts = [
        f"a drawing of a {unique_token} {class_token} in ink",
    ]
    return prompts

def get_accessory_prompts(class_token, unique_token):
    prompts = [
        "a {0} {1} wearing a crown".format(unique_token, class_token),
        "a {0} {1} with a long pipe and a beard".format(
            unique_token, class_token
        ),
    ]
    return prompts
"""
SEVERAL = """
def get_action_prompts(class_tokens, unique_tokens, split="eval"):
    subject = get_subject(class_tokens, unique_tokens)
    if split == "other":
        prompts = [f"{subject} dancing"]
    else:
        prompts = [f"a photo of {subject} singing together", f"{subject} eating together"]
    return prompts
"""


@pytest.fixture
def read(tmp_path):
    def read(name, text):
        (tmp_path / name).write_text(text)
        return read_prompts(tmp_path / name)

    return read


def test_the_set_has_ten_prompts_of_four_kinds():
    assert Counter(prompt.kind for prompt in PROMPTS) == {
        **{"accessory": 10, "style": 10, "action": 10, "context": 10}
    }
    assert len({prompt.text for prompt in PROMPTS}) == 40
    assert all(prompt.text.count("{people}") == 1 for prompt in PROMPTS)


def test_the_released_file_is_read_without_running_it(read):
    found = read("data.py", PYTHON)

    assert found.prompts == [
        Prompt("accessory", "{people} wearing a crown"),
        Prompt("accessory", "{people} with a long pipe and a beard"),
        Prompt("style", "a drawing of {people} in ink"),
    ]
    assert found.nouns == {"anna": "woman", "ben": "man"}


def test_of_the_released_file_for_several_people_the_longest_list_is_read(read):
    assert [prompt.text for prompt in read("data.py", SEVERAL).prompts] == [
        "a photo of {people} singing together",
        "{people} eating together",
    ]


def test_text_and_json_are_read(read):
    text = read("p.txt", "\ufeff# mine\n\n{people} swimming\n a statue of {people} \n")
    assert [p.text for p in text.prompts] == ["{people} swimming", "a statue of {people}"]
    by_kind = read("p.json", json.dumps({"place": ["{people} at home"]}))
    assert by_kind.prompts == [Prompt("place", "{people} at home")]
    assert read("q.json", '["{people}"]').prompts == [Prompt("prompts", "{people}")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "hold no prompt"),
        ("p.txt", "a man\n", "names its people 0 times, expected {people} once"),
        ("p.json", "{", "no readable JSON"),
        ("p.json", '{"a": "b"}', "expected a list of strings, or lists of strings by kind"),
        ("p.json", "[" * 10**5, "no readable JSON"),
        ("p.py", "def f(:", "no readable Python"),
        ("p.py", "IMAGE_TO_GENDER_EVAL = dict(open('x'))", "line 1 is no literal"),
        ("p.py", "def get_a_prompts():\n    return [open('x')]", "line 2 is no string"),
    ],
)
def test_what_is_no_prompts_is_refused(read, name, text, message):
    with pytest.raises(InputError, match=message):
        read(name, text)


def test_cases_are_people_by_prompts_by_pictures():
    people = [Person(name, noun, BLACK) for name, noun in (("a", "man"), ("b", "actor"))]

    cases = make_cases(people, PROMPTS, images=4, seed=7)

    assert len(cases) == 2 * 40 * 4
    assert len({case.seed for case in cases}) == len({case.name for case in cases}) == len(cases)
    assert cases[0].seed == 7
    assert cases[161].name == "subject_0001_prompt_0000_instance_0001"
    assert cases[160].prompt == f"a portrait of an actor {SUBJECT_MARKER} wearing a straw hat"


def test_groups_of_people_are_drawn_by_the_seed():
    people = [Person(str(i), "man", BLACK) for i in range(6)]

    def groups(**options):
        cases = make_cases(people, PROMPTS[:1], subjects=3, images=1, **options)
        assert all(case.prompt.count(SUBJECT_MARKER) == 3 for case in cases)
        return [case.people for case in cases]

    assert len(groups()) == 20
    some = groups(most=5, seed=1)
    assert len(set(some)) == 5
    assert some == groups(most=5, seed=1) != groups(most=5, seed=2)
    with pytest.raises(InputError, match="there are 6 people, expected 7 or more"):
        make_cases(people, PROMPTS, subjects=7)


def test_people_are_files_and_folders_of_photographs(tmp_path):
    (tmp_path / "anna").mkdir()
    for name, level in (("b.png", 2), ("a.png", 1)):
        pixels = np.full((8, 8, 3), level, np.uint8)
        write_png(tmp_path / "anna" / name, pixels, {}, overwrite=False)
    write_png(tmp_path / "ben.png", np.full((8, 8, 3), 3, np.uint8), {}, overwrite=False)
    (tmp_path / "notes.txt").write_text("no photograph")
    (tmp_path / "nouns.json").write_text('{"anna": "woman"}')

    anna, ben = read_people(tmp_path, {})
    assert (anna.id, anna.noun, ben.id, ben.noun) == ("anna", "woman", "ben", "person")
    assert anna.photograph[0, 0, 0] == 1
    assert [other[0, 0, 0] for other in anna.others] == [2]
    assert [person.id for person in read_people(tmp_path, {"ben": "man"})] == ["ben"]
    with pytest.raises(InputError, match="lacks carl, which the prompts name"):
        read_people(tmp_path, {"ben": "man", "carl": "man"})
    with pytest.raises(InputError, match="is no folder"):
        read_people(tmp_path / "nowhere", {})
    (tmp_path / "nouns.json").write_text("[]")
    with pytest.raises(InputError, match="expected words by name"):
        read_people(tmp_path, {})


def test_the_bundled_people_are_the_default():
    found = {person.id: person.noun for person in read_people(None, {})}

    assert len(found) == 8
    assert found["P003"] == "woman"
    assert found["P005"] == "man"
