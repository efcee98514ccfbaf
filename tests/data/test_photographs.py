import inspect
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fd_jax.data.photographs import PhotographError, load_photograph, subject_pixels

GOLDENS = Path(os.environ.get("FD_GOLDENS") or Path(__file__).parents[1] / "goldens")

ROW, COLUMN, CHANNEL = np.mgrid[:9, :14, :3]
PIXELS = ((37 * ROW + 23 * COLUMN + 91 * CHANNEL + 5 * ROW * COLUMN) % 256).astype(np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def png_header(path, width, height):
    """A PNG that promises much and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    data = struct.pack(">I", 13) + chunk + crc + struct.pack(">I", 99) + b"IDAT"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.golden
@pytest.mark.parametrize("name", ["sample_ddim", "sample_ddim_one", "sample_pndm"])
def test_subject_pixels_equal_the_released_code(name):
    with np.load(GOLDENS / f"{name}.npz") as golden:
        expected = golden["object_pixel_values"][0].transpose(0, 2, 3, 1)
        for i, pixels in enumerate(expected):
            photograph = load_photograph(golden[f"reference_{i}"])
            np.testing.assert_array_equal(subject_pixels(photograph, len(pixels)), pixels)


def test_subject_pixels_equal_torch():
    """Odd padding, from `F.interpolate(mode="bilinear", antialias=True)` of torch 2.13."""
    levels = [
        [[26, 64, 73], [58, 70, 42], [65, 48, 59], [56, 56, 65]],
        [[123, 141, 112], [127, 121, 129], [123, 136, 125], [135, 130, 131]],
        [[123, 113, 154], [127, 120, 130], [124, 135, 129], [137, 135, 129]],
        [[49, 50, 59], [58, 59, 54], [54, 64, 55], [57, 59, 55]],
    ]
    np.testing.assert_array_equal(subject_pixels(PIXELS, 4), np.float32(levels) / np.float32(255))


def test_subject_pixels_do_nothing_to_a_square_of_the_right_size():
    square = PIXELS[:, :9]
    np.testing.assert_array_equal(subject_pixels(square, 9), square / np.float32(255))


@pytest.mark.parametrize("resolution", [5, 8, 14, 31])
def test_padding_is_black_and_even(resolution):
    tall = PIXELS[:, :5]
    padded = np.pad(tall, ((0, 0), (2, 2), (0, 0)))
    np.testing.assert_array_equal(
        subject_pixels(tall, resolution), subject_pixels(padded, resolution)
    )


def test_a_plain_photograph_stays_plain():
    pixels = subject_pixels(np.full((40, 20, 3), 200, np.uint8), 8)
    np.testing.assert_array_equal(pixels[:, 3:5], np.float32(200 / 255))
    np.testing.assert_array_equal(pixels[:, [0, 7]], 0)


def test_a_long_photograph_is_not_squared_in_memory():
    pixels = subject_pixels(np.full((100_000, 2, 3), 255, np.uint8), 3)
    np.testing.assert_array_equal(pixels, 0)  # the square would take 30 GB


def test_a_path_an_image_and_an_array_give_the_same(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    for source in (
        path,
        str(path),
        Image.open(path),
        PIXELS,
        PIXELS / 255,
        np.float16(PIXELS / 255),
    ):
        np.testing.assert_array_equal(load_photograph(source), PIXELS)


def test_the_array_is_the_callers_own():
    photograph = load_photograph(PIXELS)
    photograph[:] = 0
    assert PIXELS.any()


@pytest.mark.parametrize(
    ("mode", "color", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 80, (80, 80, 80)),
        ("LA", (80, 255), (80, 80, 80)),
        ("LA", (80, 0), (0, 0, 0)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("RGBA", (200, 100, 50, 0), (0, 0, 0)),
        ("RGBA", (200, 100, 50, 51), (40, 20, 10)),
        ("RGBa", (40, 20, 10, 51), (40, 20, 10)),
        ("RGBX", (200, 100, 50, 0), (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 40_000, (156, 156, 156)),
        ("I;16B", 65_535, (255, 255, 255)),
        ("I", 40_000, (156, 156, 156)),
        ("I", 200, (200, 200, 200)),
        ("F", 0.4, (102, 102, 102)),
        ("F", 200.0, (200, 200, 200)),
    ],
)
def test_every_mode_becomes_rgb(mode, color, rgb):
    photograph = load_photograph(Image.new(mode, (5, 4), color))
    np.testing.assert_array_equal(photograph, np.broadcast_to(np.uint8(rgb), (4, 5, 3)))


@pytest.mark.parametrize(
    ("name", "image", "options", "rgb"),
    [
        ("cmyk.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {}, (255, 0, 0)),
        ("grey.jpg", Image.new("L", (16, 16), 80), {}, (80, 80, 80)),
        ("grey16.png", Image.fromarray(np.full((9, 9), 40_000, np.uint16)), {}, (156, 156, 156)),
        ("float.tif", Image.new("F", (9, 9), 0.4), {}, (102, 102, 102)),
        ("palette.png", Image.new("RGB", (9, 9), (9, 8, 7)).quantize(2), {}, (9, 8, 7)),
        ("key.png", Image.new("RGB", (9, 9), (9, 8, 7)), {"transparency": (9, 8, 7)}, (0, 0, 0)),
        ("index.png", Image.new("P", (9, 9), 3), {"transparency": b"\xff\xff\xff\0"}, (0, 0, 0)),
        ("alpha.webp", Image.new("RGBA", (9, 9), (9, 8, 7, 0)), {"lossless": True}, (0, 0, 0)),
    ],
)
def test_every_kind_of_file_becomes_rgb(tmp_path, name, image, options, rgb):
    photograph = load_photograph(save(tmp_path / name, image, **options))
    np.testing.assert_array_equal(photograph, np.broadcast_to(np.uint8(rgb), photograph.shape))


def test_grey_and_alpha_arrays():
    grey = PIXELS[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(load_photograph(grey), expected)
    np.testing.assert_array_equal(load_photograph(grey[..., None]), expected)
    alpha = np.where(COLUMN[..., :1] < 7, 255, 0).astype(np.uint8)
    cut_out = load_photograph(np.concatenate([PIXELS, alpha], axis=2))
    np.testing.assert_array_equal(cut_out, np.where(alpha > 0, PIXELS, 0))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "lime", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert load_photograph(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((9, 14, 3) if orientation < 5 else (14, 9, 3))
    np.testing.assert_array_equal(load_photograph(path), expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_photograph(image), expected)


def test_broken_metadata_spoils_no_photograph(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS), exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(load_photograph(path), PIXELS)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PhotographError, match=f"a.{suffix} (cannot be read|is no image)"):
        load_photograph(path)


def test_files_that_are_no_photographs(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    for name, message in {
        "missing.jpg": "missing.jpg does not exist",
        ".": "is a folder",
        "empty.jpg": "empty.jpg is empty",
        "text.jpg": "text.jpg is no image",
    }.items():
        with pytest.raises(PhotographError, match=message):
            load_photograph(tmp_path / name)


def test_sizes_are_checked_before_decoding(tmp_path, monkeypatch):
    huge = png_header(tmp_path / "huge.png", 60_000, 50_000)
    with pytest.raises(PhotographError, match=r"huge.png is too large.*3000000000 pixels"):
        load_photograph(huge)
    thin = png_header(tmp_path / "thin.png", 3, 301)
    with pytest.raises(PhotographError, match=r"thin.png is 3 x 301 pixels, expected sides"):
        load_photograph(thin)
    # Pillow warns of this size, which is one of today's cameras.
    large = png_header(tmp_path / "large.png", 12_000, 9_000)
    with pytest.raises(PhotographError, match=r"large.png cannot be read: .*truncated"):
        load_photograph(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PhotographError, match="60000 x 50000 pixels, 3000000000 in all, expected"):
        load_photograph(huge)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 5)), "is 0 x 5 pixels"),
        (Image.new("RGB", (5, 1)), "is 5 x 1 pixels"),
        (Image.new("La", (5, 4)), "unsupported mode La"),
        (Image.new("I", (5, 4), -1), "mode I spans -1.0 to -1.0, expected 0 to 65535"),
        (Image.new("F", (5, 4), float("nan")), "mode F spans nan to nan"),
    ],
)
def test_unusable_images(image, message):
    with pytest.raises(PhotographError, match=message):
        load_photograph(image)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "5 x 0 pixels"),
        (np.zeros(5, np.uint8), r"shape \(5,\)"),
        (np.zeros((4, 5, 2), np.uint8), r"shape \(4, 5, 2\).*expected \(h, w\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\)"),
        (np.zeros((4, 5, 3), np.int64), "dtype int64: expected uint8"),
        (np.zeros((4, 5), bool), "dtype bool"),
        (np.full((4, 5, 3), 255.0), "spans 255.0 to 255.0, expected floats in"),
        (np.full((4, 5, 3), -0.5), "spans -0.5 to -0.5"),
        (np.full((4, 5, 3), np.nan), "spans nan to nan"),
    ],
)
def test_unusable_arrays(array, message):
    with pytest.raises(PhotographError, match=message):
        load_photograph(array)


def test_other_types_are_refused():
    unchecked = inspect.unwrap(load_photograph)  # without the shape checks of the tests
    with pytest.raises(PhotographError, match="is a int, expected a path"):
        unchecked(5)
