"""Cutting photographs of references to head and shoulders."""

import numpy as np
import pytest
from PIL import Image

from fd_jax.assets import PEOPLE, TOKENIZER
from fd_jax.data import reference_crops
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.photographs import load_photograph
from fd_jax.data.prepare.faces import find_faces
from fd_jax.data.reference_crops import crop_reference
from fd_jax.inference.inputs import make_inputs


def person(name):
    return load_photograph(PEOPLE / name / f"{name}.jpg")


def placed(*people, side=600):
    """People on a plain wall, each as a photograph at x, y of a size."""
    wall = Image.new("RGB", (side, side), (120, 140, 160))
    for name, x, y, size in people:
        wall.paste(Image.fromarray(person(name)).resize((size, size)), (x, y))
    return np.array(wall)


@pytest.mark.parametrize("name", ["P001", "P003", "P004", "P005", "P006", "P007", "P008", "P010"])
def test_a_portrait_stays_as_it_is(name):
    photograph = person(name)

    found = crop_reference(photograph)

    np.testing.assert_array_equal(found.pixels, photograph)
    assert found.note == ""


def test_a_person_far_away_is_cut_out():
    photograph = placed(("P003", 300, 280, 180))

    pixels, note = crop_reference(photograph)

    assert note == ""
    [face] = find_faces(pixels)
    assert 0.35 < face.height / len(pixels) < 0.55
    assert 0.3 < face.middle / pixels.shape[1] < 0.7
    # The wall and the backdrop of the portrait are noise: neighbours differ.
    corner = pixels[:12, :12].astype(int)
    assert np.abs(np.diff(corner, axis=1)).mean() > 50
    x1, y1, x2, y2 = face.box
    inside = pixels[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5].astype(int)
    assert np.abs(np.diff(inside, axis=1)).mean() < 20


def test_the_crop_is_the_same_each_time():
    photograph = placed(("P003", 300, 280, 180))

    np.testing.assert_array_equal(crop_reference(photograph).pixels, crop_reference(photograph)[0])


def test_of_several_faces_the_largest_is_taken_and_said():
    photograph = placed(("P003", 20, 300, 220), ("P005", 330, 260, 260))

    pixels, note = crop_reference(photograph)

    assert note.startswith("of 2 faces the largest is taken, at x 4")
    assert len(find_faces(pixels)) == 1


def test_without_a_face_nothing_is_cut():
    photograph = placed()

    found = crop_reference(photograph, always=True)

    np.testing.assert_array_equal(found.pixels, photograph)
    assert found.note == "no face is found; it is taken as it is"


@pytest.mark.parametrize(("crop", "is_cut"), [(None, True), (True, True), (False, False)])
def test_inputs_are_cut_by_option(crop, is_cut, monkeypatch):
    photograph = placed(("P003", 300, 280, 180))
    tokenizer = load_tokenizer(TOKENIZER)

    def pixels(photograph, crop):
        arguments = tokenizer, ["a woman <|image|>"], [[photograph]], [""]
        made = make_inputs(*arguments, subject_resolution=64, crop_references=crop)
        return made.subject_pixels[0, 0]

    found = pixels(photograph, crop)
    cut = pixels(crop_reference(photograph).pixels, False)
    np.testing.assert_array_equal(found, cut if is_cut else pixels(photograph, False))

    with pytest.warns(UserWarning, match="photograph in memory: no face is found"):
        pixels(placed(), True)

    # Without OpenCV nothing is cut unless it is asked for.
    monkeypatch.setattr(reference_crops, "has_detector", lambda: False)
    monkeypatch.setattr("fd_jax.inference.inputs.has_detector", lambda: False)
    np.testing.assert_array_equal(pixels(photograph, None), pixels(photograph, False))


def test_portraits_are_cut_where_it_is_asked_for():
    photograph = person("P003")

    pixels, note = crop_reference(photograph, always=True)

    assert note == ""
    assert pixels.shape != photograph.shape or (pixels != photograph).any()
    assert np.abs(np.diff(pixels[:12, :12].astype(int), axis=1)).mean() > 50


def test_a_background_that_cannot_be_told_is_kept_and_said(monkeypatch):
    photograph = placed(("P003", 300, 280, 180))
    monkeypatch.setattr(
        reference_crops, "segment_people", lambda cut: np.zeros(cut.shape[:2], bool)
    )

    pixels, note = crop_reference(photograph)

    assert note.startswith("the background is kept: mask empty")
    assert np.abs(np.diff(pixels[:12, :12].astype(int), axis=1)).mean() < 20
