import errno
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image, ImageFont

from fd_jax.errors import OutputError
from fd_jax.images.png import read_settings, write_png
from fd_jax.images.sheets import contact_sheet, scaled, wrap
from fd_jax.images.trace_sheet import trace_sheet

PICTURE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
RED, GREEN, BLUE, PINK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255)


def plain(color, height=64, width=64):
    return np.full((height, width, 3), color, np.uint8)


def box(is_inside):
    """The rows and columns that hold all of it: top, bottom, left, right, the ends exclusive."""
    rows, columns = np.nonzero(is_inside)
    assert len(rows) > 0
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


def box_of(sheet, color):
    top, bottom, left, right = box((sheet == color).all(axis=-1))
    assert (sheet[top:bottom, left:right] == color).all()
    return top, bottom, left, right


@pytest.fixture
def no_hard_links(monkeypatch):
    def link(*paths):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", link)


SETTINGS = {
    "prompt": "a man <|image|>, \u00e9t\u00e9, \u5973\u4eba \U0001f600\nand\r\n\ttabs",
    "negative_prompt": "",
    "seed": 3,
    "guidance_scale": 5.5,
    "references": ["a.jpg", "\u00e9.jpg"],
    "Steps of fusion": None,
    "k" * 79: True,
}


def test_pixels_and_settings_come_back(tmp_path):
    write_png(tmp_path / "a.png", PICTURE, SETTINGS, overwrite=False)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    assert read_settings(tmp_path / "a.png") == SETTINGS | {
        "seed": "3",
        "guidance_scale": "5.5",
        "references": '["a.jpg", "\u00e9.jpg"]',
        "Steps of fusion": "null",
        "k" * 79: "true",
    }


def test_a_picture_may_have_no_settings(tmp_path):
    write_png(tmp_path / "a.png", PICTURE[:, ::-2], {}, overwrite=False)
    assert read_settings(tmp_path / "a.png") == {}


def test_files_are_replaced_only_when_asked(tmp_path):
    path = tmp_path / "a.png"
    write_png(path, PICTURE, {"seed": 1}, overwrite=True)
    with pytest.raises(OutputError, match=r"a.png exists already; pass --overwrite to replace it"):
        write_png(path, PICTURE, {"seed": 2}, overwrite=False)
    assert read_settings(path) == {"seed": "1"}
    write_png(path, PICTURE, {"seed": 3}, overwrite=True)
    assert read_settings(path) == {"seed": "3"}
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_hard_links")
def test_file_systems_without_hard_links(tmp_path):
    test_pixels_and_settings_come_back(tmp_path)
    (tmp_path / "a.png").unlink()
    test_files_are_replaced_only_when_asked(tmp_path)


def race(path):
    """Lets threads write the same file at once; returns the seeds that were written."""
    start, written = threading.Barrier(8), []

    def write(seed):
        start.wait()
        try:
            write_png(path, PICTURE, {"seed": seed}, overwrite=False)
        except OutputError:
            return
        written.append(str(seed))

    threads = [threading.Thread(target=write, args=[seed]) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return written


def test_one_of_many_writers_wins(tmp_path):
    assert race(tmp_path / "a.png") == [read_settings(tmp_path / "a.png")["seed"]]
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.usefixtures("no_hard_links")
def test_one_of_many_writers_wins_without_hard_links(tmp_path):
    test_one_of_many_writers_wins(tmp_path)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.usefixtures("no_hard_links")
def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch, overwrite):
    def replace(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OutputError, match=r"a.png cannot be written: No space left"):
        write_png(tmp_path / "a.png", PICTURE, {}, overwrite=overwrite)
    assert os.listdir(tmp_path) == []


def test_the_mode_is_that_of_other_new_files(tmp_path):
    (tmp_path / "other").touch()
    write_png(tmp_path / "a.png", PICTURE, {}, overwrite=False)
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_may_be_as_long_as_they_can(tmp_path):
    name = "a" * 251 + ".png"
    write_png(tmp_path / name, PICTURE, {}, overwrite=False)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "nowhere/a.png",
            "nowhere/a.png cannot be written: expected the folder .*nowhere to exist",
        ),
        ("file/a.png", "expected the folder .*file to exist"),
        ("folder", "folder (exists already|cannot be written: Is a directory)"),
        ("a" * 300, "cannot be written: File name too long"),
        ("a\0b", "cannot be written: .*embedded null"),
        ("/", "cannot be written"),
    ],
)
def test_places_that_hold_no_files(tmp_path, name, message, overwrite):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=message):
        write_png(tmp_path / name, PICTURE, {}, overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"": 1}, "a.png: a setting is named '', expected 1 to 79 printable ASCII"),
        ({"k" * 80: 1}, "expected 1 to 79"),
        ({" seed": 1}, "is named ' seed'"),
        ({"se\0ed": 1}, "is named"),
        ({"se\n": 1}, "is named"),
        ({"\u00e9": 1}, "is named '\u00e9'"),
        ({"seed": object()}, "setting seed is <object object at .*, expected text or a JSON value"),
        ({"prompt": "a\udce9"}, "setting prompt is 'a.udce9', expected text"),
    ],
)
def test_settings_that_cannot_be_stored(tmp_path, settings, message):
    with pytest.raises(OutputError, match=message):
        write_png(tmp_path / "a.png", PICTURE, settings, overwrite=False)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["\udce9", "\udcff x", "é 日本", 'a"b'])
def test_json_keeps_file_names_that_are_no_text(tmp_path, name):
    write_png(tmp_path / "a.png", PICTURE, {"config": {"root": name}}, overwrite=False)
    assert json.loads(read_settings(tmp_path / "a.png")["config"]) == {"root": name}


def test_an_empty_picture_is_refused(tmp_path):
    with pytest.raises(OutputError, match=r"a.png cannot be written: .*empty"):
        write_png(tmp_path / "a.png", PICTURE[:0], {}, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_settings_are_read_from_png_files_alone(tmp_path):
    write_png(tmp_path / "a.png", PICTURE, SETTINGS, overwrite=False)
    whole = (tmp_path / "a.png").read_bytes()
    for size in range(0, len(whole) - 20, 7):
        (tmp_path / "cut.png").write_bytes(whole[:size])
        with pytest.raises(OutputError, match=r"cut.png cannot be read, expected a PNG file"):
            read_settings(tmp_path / "cut.png")
    Image.fromarray(PICTURE).save(tmp_path / "a.jpg")
    for name in ("a.jpg", "nowhere.png", "."):
        with pytest.raises(OutputError, match="cannot be read, expected a PNG file"):
            read_settings(tmp_path / name)


def test_pictures_of_a_sheet_are_whole_and_in_order():
    colors = [RED, GREEN, BLUE, PINK, (9, 200, 90)]
    sheet = contact_sheet([plain(color, 300, 280) for color in colors], ["man", "", "x", "y", "z"])
    places = [box_of(sheet, color) for color in colors]
    for top, bottom, left, right in places:
        assert (bottom - top, right - left) == (300, 280)
    tops, _, lefts, _ = np.transpose(places)
    assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
    assert lefts[0] == lefts[3] < lefts[1] == lefts[4] < lefts[2]
    for side in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]):
        assert (side == 255).all()


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ((64, 64), (128, 128)),
        ((100, 40), (100, 40)),
        ((128, 64), (128, 64)),
        ((1, 1), (128, 128)),
        ((129, 20), (129, 20)),
        ((512, 300), (512, 300)),
        ((1024, 256), (512, 128)),
        ((3, 3000), (1, 512)),
    ],
)
def test_pictures_keep_their_aspect(shape, shown):
    top, bottom, left, right = box_of(contact_sheet([plain(RED, *shape)], ["a"]), RED)
    assert (bottom - top, right - left) == shown


def test_small_pictures_are_enlarged_smoothly():
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (30, 1, 3))
    enlarged = np.asarray(scaled(ramp, 200)).astype(int)
    assert enlarged.shape == (3 * 30, 3 * 60, 3)
    assert np.abs(np.diff(enlarged[:, 9:-9], axis=1) - 4 / 3).max() < 1  # no steps of 4
    np.testing.assert_allclose(enlarged[1::3, 1::3][:, 3:-3], ramp[:, 3:-3], atol=1)
    assert scaled(ramp, 100).size == (60, 30)  # by whole factors alone


@pytest.mark.parametrize(
    ("size", "sides"), [(64, (128, 128, 128)), (512, (253, 253, 166)), (256, (128, 128, 128))]
)
def test_references_are_as_large_as_a_small_picture_or_half_as_wide(size, sides):
    for count, side in enumerate(sides, start=1):
        row = [plain((i, 90, 0), 300, 300) for i in range(count)]
        sheet = contact_sheet([plain(RED, size, size)], ["a"], references=[row])
        for photograph in row:
            top, bottom, left, right = box_of(sheet, photograph[0, 0])
            assert (bottom - top, right - left) == (side, side)


def test_many_pictures_share_the_width():
    sheet = contact_sheet([PICTURE] * 400, ["seed"] * 400)
    assert sheet.shape[1] < 5000


def test_references_stand_above_their_picture():
    images = [plain(RED, 256, 256), plain(GREEN, 128, 256), plain(BLUE, 256, 256)]
    references = [
        [plain((i, 90, j), 300, 200 + 100 * (j % 2)) for j in range(i)] for i in (0, 1, 4)
    ]
    cell = 4 * 128 + 3 * 6
    sheet = contact_sheet(images, ["a", "b", "c"], references=references)
    for image, row in zip(images, references, strict=True):
        top, _, left, right = box_of(sheet, image[0, 0])
        middle = (left + right) // 2
        previous = middle - cell // 2 - 1
        for photograph in row:
            place = box_of(sheet, photograph[0, 0])
            assert previous < place[2]
            assert place[1] < top
            assert place[3] <= middle + cell // 2
            previous = place[3]
    without = contact_sheet(images, ["a", "b", "c"], references=[[], [], []])
    np.testing.assert_array_equal(without, contact_sheet(images, ["a", "b", "c"]))


def test_any_number_of_references_fits():
    references = [[plain(RED, 50, 50)] * 70]
    sheet = contact_sheet([plain(GREEN, 256, 256)], ["a"], references=references)
    box_of(sheet, GREEN)


@pytest.mark.parametrize(
    "label",
    [
        "",
        " \n",
        "a\nb\0c",
        "\u5973\u4eba \U0001f468\u200d\U0001f469",
        "\udce9",
        "\u202e\u05d0",
        "x" * 9999,
    ],
)
def test_any_label_can_be_drawn(label):
    sheet = contact_sheet([plain(RED)] * 2, [label, "snow"])
    assert (sheet == RED).all(axis=-1).sum() == 2 * 128 * 128


def test_labels_differ_below_their_picture():
    pictures = [plain(RED), plain(GREEN)]
    one, other = (contact_sheet(pictures, ["snow", label]) for label in ("ice", "sea"))
    top, _, left, _ = box((one != other).any(axis=-1))
    _, bottom, start, _ = box_of(one, GREEN)
    assert top >= bottom
    assert left >= start


@pytest.mark.parametrize("text", ["a man in the snow, reading " * 3, "x" * 90, "snow " * 200])
@pytest.mark.parametrize("width", [40, 100, 333])
def test_wrapped_lines_fit_and_lose_nothing_unsaid(text, width):
    font = ImageFont.load_default(12)
    lines = wrap(text, font, width, 3)
    assert 1 <= len(lines) <= 3
    assert max(map(font.getlength, lines)) <= width
    drawn = "".join(lines).replace(" ", "")
    whole = text.replace(" ", "")
    assert drawn == whole or (drawn[-1] == "\u2026" and whole.startswith(drawn[:-1]))
    assert wrap(text[:400], font, 10_000, 1) == [" ".join(text[:400].split())]


def test_wrapping_keeps_words_whole():
    font = ImageFont.load_default(12)
    for shown in ("snow ice", "snow ice s"):
        lines = wrap("snow ice sea", font, round(font.getlength(shown)), 9)
        assert lines == ["snow ice", "sea"]
    assert wrap("\u00e9t\u00e9\n \u00c5ngstr\u00f6m", font, 999, 1) == ["ete Angstrom"]


@pytest.mark.parametrize(
    ("images", "labels", "references"),
    [([], [], None), ([PICTURE], [], None), ([PICTURE], ["a"], []), ([], ["a"], [[PICTURE]])],
)
def test_sheets_need_as_much_of_each(images, labels, references):
    with pytest.raises(ValueError, match="expected as many of each and at least one"):
        contact_sheet(images, labels, references=references)


STEPS = ["0 scene", "16 fusion", "31 subject"]
PREDICTED = np.stack([plain(color, 128, 64) for color in (RED, GREEN, BLUE)])
TDM = np.random.default_rng(1).random((3, 8, 4)).astype(np.float32)
SDM = np.random.default_rng(2).random((3, 8, 4)).astype(np.float32)
MASK = np.zeros((3, 8, 4), np.float32)


def trace(predicted=PREDICTED, tdm=TDM, sdm=SDM, mask=MASK, steps=STEPS, title="a man"):
    return trace_sheet(predicted, tdm, sdm, mask, steps=steps, title=title)


def changed(maps, step):
    maps = maps.copy()
    maps[step] = 1 - maps[step]
    return maps


def panel(**maps):
    """Where the sheet changes with the maps."""
    return box((trace() != trace(**maps)).any(axis=-1))


def test_a_trace_is_a_grid_of_steps_and_rows():
    sheet = trace()
    for step, color in enumerate((RED, GREEN, BLUE)):
        top, bottom, left, right = box_of(sheet, color)
        assert (bottom - top, right - left) == (256, 128)
        above = bottom
        for name, maps in {"tdm": TDM, "sdm": SDM, "mask": MASK}.items():
            place = panel(**{name: changed(maps, step)})
            assert place == (place[0], place[0] + 256, left, right)
            assert place[0] > above
            above = place[1]


def test_every_map_is_drawn_between_its_own_extremes():
    scale = np.array([2, 8, 1 / 4], np.float32)[:, None, None]
    np.testing.assert_array_equal(trace(), trace(tdm=TDM * scale, sdm=SDM / scale))
    shifted = trace(tdm=TDM + np.float32(3))
    assert np.abs(trace().astype(int) - shifted).max() <= 1


def test_more_saliency_is_lighter():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 64).repeat(3, axis=0)
    top, bottom, left, right = panel(tdm=changed(TDM, 1))
    row = trace(tdm=ramp, sdm=ramp, mask=ramp)[(top + bottom) // 2, left:right]
    assert (np.diff((row @ [0.2126, 0.7152, 0.0722])[::2]) > 0).all()


@pytest.mark.parametrize("level", [0, 1 / 256])
def test_equal_saliency_is_the_darkest(level):
    top, bottom, left, right = panel(tdm=changed(TDM, 1))
    flat = np.float32(level) * (1 + 1e-7 * TDM)  # but for rounding
    dark = trace(tdm=flat.astype(np.float32))[top:bottom, left:right]
    assert (dark == dark[0, 0]).all()
    assert dark.max() < 50


def test_models_that_did_not_run_are_hatched():
    tdm = TDM.copy()
    tdm[2] = np.nan
    top, bottom, left, right = panel(tdm=tdm)
    assert (bottom - top, right - left) == (256, 128)
    hatched = trace(tdm=tdm)[top:bottom, left:right]
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) == 2
    assert (hatched == hatched[..., :1]).all()  # grey


def test_the_mask_has_two_colours_in_proportion():
    mask = MASK.copy()
    mask[1, :, 0] = 1
    mask[2] = 1
    sheet = trace(mask=mask)
    top, bottom, left, right = panel(mask=changed(MASK, 0))
    tdm = sheet[top, left]
    _, _, _, end = panel(mask=changed(MASK, 2))
    sdm = sheet[top, end - 1]
    area = (bottom - top) * (right - left)
    row = sheet[top:bottom, left:end]
    assert (row == tdm).all(axis=-1).sum() == area + area * 3 // 4
    assert (row == sdm).all(axis=-1).sum() == area + area // 4
    # The legend names the TDM first.
    swatches = [box_of(sheet[bottom:], colour) for colour in (tdm, sdm)]
    assert swatches[0][3] < swatches[1][2]


@pytest.mark.parametrize("count", [1, 50])
def test_traces_of_any_length(count):
    maps = np.ones((count, 2, 3), np.float32)
    sheet = trace_sheet(
        np.zeros((count, 16, 24, 3), np.uint8),
        *(maps, maps * np.nan, maps),
        steps=["16 fusion, a long heading"] * count,
        title="a man <|image|> in the snow, \u5973\u4eba, " * 50,
    )
    assert sheet.shape[1] < 6000
    for side in (sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]):
        assert (side == 255).all()


def test_traces_need_a_heading_for_each_step():
    with pytest.raises(ValueError, match="3 steps and 2 headings, expected as many of each"):
        trace(steps=STEPS[:2])
    with pytest.raises(ValueError, match="0 steps and 0 headings"):
        trace(PREDICTED[:0], TDM[:0], SDM[:0], MASK[:0], steps=[])


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(Exception, match="mask"):
        trace(mask=MASK[:, 1:])
