"""Faces and masks of people, against those that come with the photographs."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fd_jax.data.prepare.faces import Face, find_faces, sharpness
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.data.prepare.masks import find_mask, people_map, read_mask, segment_people

pytest.importorskip("cv2", reason="OpenCV is an extra: pip install opencv-python-headless")


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("name", ["P001", "P004", "P007"])
def test_portraits_have_one_face_and_their_mask(portrait, name):
    image, mask = portrait(name, 320)

    [face] = find_faces(image)
    found = people_map(image, segment_people(image), [face])

    x1, y1, x2, y2 = face.box
    assert mask[y1:y2, x1:x2].mean() > 0.9
    assert face.height > 100
    assert iou(found == 1, mask) > 0.98


def test_a_room_has_no_face():
    room = np.linspace(0, 255, 320, dtype=np.uint8)[:, None, None].repeat(320, 1).repeat(3, 2)

    assert find_faces(room) == []


def test_small_faces_are_found(portrait):
    image = np.full((600, 800, 3), 128, np.uint8)
    image[480:, 100:220] = portrait("P005", 120)[0]

    [face] = find_faces(image)

    assert 100 < face.box[0] < face.box[2] < 220
    assert face.height < 80


def test_blur_lowers_sharpness(portrait):
    image = portrait("P006")[0]
    [face] = find_faces(image)
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(2)))

    assert sharpness(image, face) > 0.03
    assert sharpness(blurred, face) < 0.02


def test_two_people_are_split_by_their_faces(pair):
    image, segment_map = pair
    faces = sorted(find_faces(image), key=lambda face: face.middle)

    found = people_map(image, segment_people(image), faces)

    assert len(faces) == 2
    assert iou(found > 0, segment_map > 0) > 0.93
    assert min(iou(found == value, segment_map == value) for value in (1, 2)) > 0.75


def test_parts_without_a_face_are_nobody(pair):
    image, _ = pair
    people = np.zeros((384, 512), bool)
    people[:, :150] = people[:, 300:] = True
    left = Face((60, 60, 120, 120), 0.9)

    found = people_map(image, people, [left])

    assert found[:, :150].all()
    assert not found[:, 300:].any()


def test_given_masks_are_taken_as_they_are(pair, tmp_path):
    image, segment_map = pair
    faces = sorted(find_faces(image), key=lambda face: face.middle)
    np.save(tmp_path / "both.npy", segment_map * np.uint8(7))

    given = read_mask(tmp_path / "both.npy", 384, 512)

    np.testing.assert_array_equal(people_map(image, given, faces), segment_map)


def test_masks_are_found_by_name(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("one.png", "two.jpg.npy"):
        (tmp_path / "a" / name).touch()

    paths = [
        find_mask(tmp_path, tmp_path / "a" / name) for name in ("one.jpg", "two.jpg", "no.jpg")
    ]

    assert [path and path.name for path in paths] == ["one.png", "two.jpg.npy", None]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((384, 512), np.uint8), "mask empty"),
        (np.ones((384, 512), np.uint8), "mask everything"),
        (np.pad(np.ones((384, 100), np.uint8), ((0, 0), (412, 0))), "mask empty"),
    ],
)
def test_masks_that_show_nobody_are_told(pair, mask, reason):
    left = Face((60, 60, 120, 120), 0.9)

    with pytest.raises(LeftOut) as caught:
        people_map(pair[0], mask, [left])

    assert caught.value.reason == reason


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"\x93NUMPY"])
def test_damaged_masks_are_told(tmp_path, content):
    (tmp_path / "mask.png").write_bytes(content)

    with pytest.raises(LeftOut, match=r"bad mask: mask mask\.png"):
        read_mask(tmp_path / "mask.png", 384, 512)


def test_black_and_white_and_palette_masks_are_read(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[5:9, 5:9] = 1
    Image.fromarray(mask.astype(bool)).save(tmp_path / "bool.png")
    palette = Image.fromarray(mask).convert("P")
    palette.putdata(mask.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "rgb.png")

    np.testing.assert_array_equal(read_mask(tmp_path / "bool.png", 20, 30), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png", 20, 30), mask)
    with pytest.raises(LeftOut, match="mode RGB, expected 1, L or P"):
        read_mask(tmp_path / "rgb.png", 20, 30)
    with pytest.raises(LeftOut, match=r"expected uint8 of shape \(30, 20\)"):
        read_mask(tmp_path / "bool.png", 30, 20)
