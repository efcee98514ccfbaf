import shutil
from collections import Counter

import numpy as np
import pytest

from fd_jax.assets import PEOPLE
from fd_jax.data.ffhq.folder import ID_FILES
from fd_jax.demo.grid import compose_small, make_grid, read_subjects
from fd_jax.demo.painters import SCENES
from fd_jax.errors import InputError


@pytest.fixture(scope="module")
def subjects():
    return read_subjects([PEOPLE], 8)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(PEOPLE, tmp_path / "people")


def test_train_lists_were_seen_and_test_lists_were_not(subjects):
    kinds = {subject.person.id: subject.kind for subject in subjects}
    nouns = {subject.person.id: subject.person.noun for subject in subjects}

    assert [name for name in kinds if kinds[name] == "seen"] == ["P003", "P005", "P006", "P007"]
    assert [name for name in kinds if kinds[name] == "unseen"] == ["P001", "P004", "P008", "P010"]
    assert {name for name in nouns if nouns[name] == "man"} == {"P005", "P007", "P008"}
    assert all(subject.person.photograph.shape == (256, 256, 3) for subject in subjects)


def test_fewer_people_are_spread_over_the_list():
    assert [subject.person.id for subject in read_subjects([PEOPLE], 3)] == [
        *("P003", "P006", "P007"),
        *("P001", "P008", "P010"),
    ]


def test_a_folder_named_twice_counts_once(subjects):
    again = read_subjects([PEOPLE, PEOPLE], 8)

    assert [subject.person.id for subject in again] == [subject.person.id for subject in subjects]


def test_every_scene_is_asked_of_each_kind_and_number(subjects):
    grid = make_grid(subjects, SCENES, 2)

    groups = Counter((case.kind, len(case.people), case.prompt_number) for case in grid)
    assert len(groups) == 2 * 2 * len(SCENES)
    assert set(groups.values()) == {2}
    assert len({case.seed for case in grid}) == len(grid)
    for case in grid:
        assert case.prompt.endswith(SCENES[case.prompt_number].phrases[0])
        assert {subjects[person].kind for person in case.people} == {case.kind}
    assert grid == make_grid(subjects, SCENES, 2)


@pytest.mark.parametrize("most", [2, 3, 4])
def test_everybody_is_asked_for_about_as_often(subjects, most):
    people = read_subjects([PEOPLE], most)
    grid = make_grid(people, SCENES, 2)

    for kind in ("seen", "unseen"):
        for count in (1, 2):
            cases = [case for case in grid if (case.kind, len(case.people)) == (kind, count)]
            for place in range(count):
                times = Counter(case.people[place] for case in cases)
                assert len(times) == most
                assert max(times.values()) - min(times.values()) <= 1


def test_two_people_are_different_and_all_pairs_occur(subjects):
    pairs = {case.people for case in make_grid(subjects, SCENES, 2) if len(case.people) == 2}

    assert all(left != right for left, right in pairs)
    assert len(pairs) == 2 * 4 * 3


def test_prompts_name_people_from_left_to_right(subjects):
    for case in make_grid(subjects, SCENES[:2], 1):
        words = case.prompt.split()
        named = [words[i - 1] for i, word in enumerate(words) if word == "<|image|>"]
        assert named == [subjects[person].person.noun for person in case.people]


def test_a_folder_without_test_list_is_refused(folder):
    (folder / ID_FILES["test"]).unlink()

    with pytest.raises(InputError, match=r"image_ids_test\.txt does not exist"):
        read_subjects([folder], 8)


def test_one_person_is_too_few(folder):
    (folder / ID_FILES["test"]).write_text("P001\n")

    with pytest.raises(InputError, match="1 people in split 'test', expected at least 2"):
        read_subjects([folder], 8)


def test_composed_pictures_are_small_and_follow_from_the_seed(subjects):
    cutouts = [subject.cutout for subject in subjects[:2]]

    first, again, other = (
        compose_small(SCENES[1], cutouts, np.random.default_rng(seed), 32) for seed in (0, 0, 1)
    )

    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
