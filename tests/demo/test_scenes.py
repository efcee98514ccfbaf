import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from fd_jax.assets import PEOPLE
from fd_jax.data.ffhq.check import check_folder
from fd_jax.data.ffhq.folder import ID_FILES, read_ids
from fd_jax.data.ffhq.record import decode_image, decode_map
from fd_jax.data.ffhq.source import open_source
from fd_jax.demo import portraits, scenes
from fd_jax.demo.painters import SCENES
from fd_jax.demo.portraits import Cutout
from fd_jax.errors import InputError


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes") / "out"
    scenes.build([PEOPLE], out, num_images=36, side=64)
    return out


@pytest.fixture
def people(tmp_path):
    return shutil.copytree(PEOPLE, tmp_path / "people")


def items(root, split):
    return [open_source([root], split)[i] for i in range(len(read_ids(root, split)))]


def scene_of(root, record):
    return json.loads((root / record.id[:5] / f"{record.id}.json").read_text())["scene"]


def test_what_is_written_is_a_dataset_without_faults(built):
    assert check_folder(built, None)
    assert len(read_ids(built, "train")) == 36
    assert len(read_ids(built, "test")) == 4
    assert read_ids(built, "all") == read_ids(built, "train") + read_ids(built, "test")


def test_all_scenes_are_there_and_captions_name_them(built):
    records = items(built, "train")
    phrases = {scene.name: scene.phrases for scene in SCENES}

    assert {scene_of(built, record) for record in records} == set(phrases)
    for record in records:
        assert any(phrase in record.caption for phrase in phrases[scene_of(built, record)])


def test_captions_name_one_or_two_people_from_left_to_right(built):
    records = items(built, "train")

    counts = [len(record.segments) for record in records]
    assert set(counts) == {1, 2}
    for record in records:
        words = [record.caption[s.start : s.end] for s in record.segments]
        assert all(word in ("a man", "a woman") for word in words)
        assert [s.start for s in record.segments] == sorted(s.start for s in record.segments)
        if len(words) == 2:
            left, right = (s.bbox[0] + s.bbox[2] for s in record.segments)
            assert left < right


def test_all_images_are_of_pairs_where_that_is_certain(tmp_path):
    scenes.build([PEOPLE], tmp_path / "out", num_images=10, side=64, pair_probability=1.0)
    assert {len(record.segments) for record in items(tmp_path / "out", "train")} == {2}


def test_masks_are_on_the_people(built):
    for record in items(built, "train")[:6]:
        pixels = decode_image(record.image, record.id)
        segment_map = decode_map(record.segment_map, record.id, *pixels.shape[:2])
        for segment in record.segments:
            rows, columns = np.nonzero(segment_map == segment.id)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert segment.bbox == box
            assert rows.max() == 63  # nobody floats
            assert np.mean(segment_map == segment.id) > 0.02


def test_the_scene_behind_is_left_as_painted():
    """Only the masked part, and its soft border, is the person's."""
    cutout = Cutout(np.full((80, 60, 3), 255, np.uint8), np.ones((80, 60), bool), "man")
    for seed in range(3):
        made = scenes.compose(SCENES[11], [cutout], np.random.default_rng(seed), 64)
        behind = scenes.paint(SCENES[11], np.random.default_rng(seed), 64)
        near = np.zeros((64, 64), bool)
        rows, columns = np.nonzero(made.segment_map)
        near[max(rows.min() - 3, 0) :, max(columns.min() - 3, 0) : columns.max() + 4] = True
        np.testing.assert_array_equal(made.pixels[~near], behind[~near])
        assert made.pixels[made.segment_map > 0].mean() > 150  # a starry sky is darker


def with_face(face, rows=160):
    """A grey cut-out, 100 pixels wide, with a white face."""
    pixels = np.full((rows, 100, 3), 90, np.uint8)
    x1, y1, x2, y2 = face
    pixels[y1:y2, x1:x2] = 255
    return Cutout(pixels, np.ones((rows, 100), bool), "man", face)


def face_box(made, number=1):
    """The box of the white pixels of a person, as shares of the image."""
    is_face = (made.pixels.min(axis=2) > 180) & (made.segment_map == number)
    rows, columns = np.nonzero(is_face)
    ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return np.array(ends) / len(is_face)


@pytest.mark.parametrize(
    ("places", "heights", "middle"),
    [((0.5,), (0.52, 0.62), 0.47), ((0.27, 0.73), (0.38, 0.45), 0.62)],
)
def test_faces_are_large_and_in_place(places, heights, middle):
    cutouts = [with_face((32, 20, 68, 90)) for _ in places]
    for seed in range(4):
        made = scenes.compose(SCENES[11], cutouts, np.random.default_rng(seed), 128)
        for i, place in enumerate(places):
            x1, y1, x2, y2 = face_box(made, i + 1)
            assert heights[0] - 0.02 <= y2 - y1 <= heights[1] + 0.02
            assert abs((y1 + y2) / 2 - middle) < 0.03
            assert abs((x1 + x2) / 2 - place) < 0.06
            assert made.segment_map[-1].any()


def test_a_short_chest_still_reaches_the_lower_edge():
    made = scenes.compose(
        SCENES[11], [with_face((30, 50, 70, 114), rows=120)], np.random.default_rng(0), 128
    )

    assert (made.segment_map[-1] == 1).any()
    assert face_box(made)[3] > 0.9


def test_the_same_seed_makes_the_same_pictures(built, tmp_path):
    scenes.build([PEOPLE], tmp_path / "again", num_images=36, side=64)
    scenes.build([PEOPLE], tmp_path / "other", num_images=36, side=64, seed=1)

    def content(root):
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root): path.read_bytes() for path in paths}

    assert content(built) == content(tmp_path / "again")
    assert content(built) != content(tmp_path / "other")


def test_test_people_are_in_test_pictures_alone(monkeypatch, tmp_path, people):
    """People are told apart by colours that are painted over them."""
    for name in read_ids(people, "all"):
        is_test = name in read_ids(people, "test")
        path = people / name / f"{name}.jpg"
        level = (255, 0, 0) if is_test else (0, 0, 255)
        Image.new("RGB", (256, 256), level).save(path)
    scenes.build([people], tmp_path / "out", num_images=18, side=64)

    for split, channel in (("train", 2), ("test", 0)):
        for record in items(tmp_path / "out", split):
            pixels = decode_image(record.image, record.id)
            is_person = decode_map(record.segment_map, record.id, 64, 64) > 0
            assert pixels[is_person].mean(axis=0).argmax() == channel


def test_people_cut_through_the_head_are_left_out(people, tmp_path):
    path = people / "P003" / "P003.npy"
    segment_map = np.load(path)
    segment_map[:, 0] = 1  # a side of the photograph runs along the head
    np.save(path, segment_map)

    left = portraits.People([people], "train")

    whole = portraits.People([PEOPLE], "train")
    assert (left.left_out, whole.left_out) == (1, 0)
    assert len(left.people) == len(whole.people) - 1


def test_people_without_a_chest_are_left_out(people):
    path = people / "P003" / "P003.json"
    info = json.loads(path.read_text())
    info["segments"][0]["face"][3] = 250  # of 256 rows
    path.write_text(json.dumps(info))

    assert portraits.People([people], "train").left_out == 1


def test_hair_that_the_top_edge_cuts_is_rounded():
    """The top edge of the photograph P004 cuts the hair along most of the head."""
    people = portraits.People([PEOPLE], "test")
    cutouts = [people.cut(person) for person in people.people]
    [cut] = [person for person in people.people if person.segment.bbox[1] == 0]
    cutout = cutouts[people.people.index(cut)]

    def width(row):
        return np.ptp(np.flatnonzero(cutout.is_person[row])) + 1

    assert width(1) < 0.5 * width((cutout.face[1] + cutout.face[3]) // 2)


def test_a_box_that_is_none_is_refused(monkeypatch, tmp_path, people):
    path = people / "P005" / "P005.json"
    info = json.loads(path.read_text())
    info["segments"][0]["face"] = [10, 10, 10, 40]
    path.write_text(json.dumps(info))

    with pytest.raises(SystemExit, match=r"P005: face of a segment is .*expected four whole"):
        run(monkeypatch, people, tmp_path / "out")


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scenes", *map(str, arguments)])
    scenes.main()


def test_a_folder_without_masks_is_refused_with_advice(monkeypatch, tmp_path, people):
    (people / "P003" / "P003.npy").unlink()

    with pytest.raises(SystemExit, match=r"P003\.npy missing.*A mask is a \.npy.*segmentation"):
        run(monkeypatch, people, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_photograph_without_a_person_is_refused(monkeypatch, tmp_path, people):
    np.save(people / "P005" / "P005.npy", np.zeros((256, 256), np.uint8))

    with pytest.raises(SystemExit, match=r"item P005: no person is found.*\{1: 0\.0\}"):
        run(monkeypatch, people, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_person_is_too_few(monkeypatch, tmp_path, people):
    (people / ID_FILES["train"]).write_text("P003\n")

    with pytest.raises(SystemExit, match="1 people in split 'train', expected at least 2"):
        run(monkeypatch, people, tmp_path / "out")


def test_what_is_there_is_kept(monkeypatch, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")

    with pytest.raises(SystemExit, match="is not empty"):
        run(monkeypatch, PEOPLE, out)
    with pytest.raises(SystemExit, match="no build wrote it"):
        run(monkeypatch, PEOPLE, out, "--overwrite")
    assert (out / "thesis.txt").read_text() == "years of work"


def test_an_earlier_build_is_replaced_on_demand(monkeypatch, tmp_path, capsys):
    out = tmp_path / "out"
    for count in (4, 2):
        run(monkeypatch, PEOPLE, out, "--num-images", count, "--side", 32, "--overwrite")

    assert len(read_ids(out, "train")) == 2
    assert "fd-data check" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("num_images", 0), ("side", 8), ("seed", -1), ("pair_probability", 1.5)]
)
def test_numbers_out_of_range_are_refused(tmp_path, name, value):
    with pytest.raises(InputError, match=f"{name} is {value}"):
        scenes.build([PEOPLE], tmp_path / "out", **{name: value})
