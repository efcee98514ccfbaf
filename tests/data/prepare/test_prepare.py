"""From a folder of photographs to a training set."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fd_jax.data.config import DataConfig
from fd_jax.data.examples import make_example
from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.check import check_folder
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.prepare import item
from fd_jax.data.prepare import prepare as module
from fd_jax.data.prepare.item import ItemConfig, Task
from fd_jax.data.prepare.prepare import PrepareConfig, prepare
from fd_jax.data.prepare.workers import make_items
from fd_jax.errors import InputError, OutputError

pytest.importorskip("cv2", reason="OpenCV is an extra: pip install opencv-python-headless")

HERE = PrepareConfig(workers=0)


@pytest.fixture(scope="module")
def photographs(portrait, pair, tmp_path_factory):
    """Photographs as people have them: three to learn from, and every reason not to."""
    root = tmp_path_factory.mktemp("photographs")
    woman, man = (Image.fromarray(portrait(name)[0]) for name in ("P001", "P005"))
    images = {
        "woman.jpg": (woman, "a photo of a woman"),
        "sub/pair.png": (Image.fromarray(pair[0]), "a man and a smiling woman"),
        "sub/smaller.webp": (woman.resize((200, 200)), "a woman"),
        "blurred.jpg": (man.filter(ImageFilter.GaussianBlur(4)), "a man"),
        "room.png": (Image.new("RGB", (256, 256), "grey"), "a man in a room"),
        "house.png": (Image.fromarray(portrait("P007")[0]), "a house"),
        "tiny.png": (man.resize((64, 64)), "a man"),
        "three.png": (Image.fromarray(pair[0][:, ::-1]), "a man, a woman and a boy"),
        "alone.png": (Image.fromarray(portrait("P008")[0]), None),
    }
    for name, (image, caption) in images.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=90)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
    lying = man.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees
    lying.save(root / "lying.jpg", exif=exif)
    (root / "lying.txt").write_text("the man")
    for name, content in (("empty.jpg", b""), ("script.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n")):
        (root / name).write_bytes(content)
        (root / name).with_suffix(".txt").write_text("a man")
    shutil.copy(root / "woman.jpg", root / "again.jpg")
    (root / "notes.md").write_text("not a photograph")
    return root


@pytest.fixture(scope="module")
def prepared(photographs, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "set"
    prepare(photographs, out, HERE)
    return out


@pytest.fixture
def small(photographs, tmp_path):
    """A folder of two photographs, to change."""
    root = tmp_path / "small"
    root.mkdir()
    for name in ("woman.jpg", "woman.txt", "lying.jpg", "lying.txt"):
        shutil.copy2(photographs / name, root)
    return root


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out):
    """Every file of a set but its journal, which names folders."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "prepare.jsonl"]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_every_photograph_is_written_or_left_out_for_a_reason(prepared):
    written = {row["photograph"]: row["people"] for row in rows(prepared / "items.csv")}
    reasons = {row["photograph"]: row["reason"] for row in rows(prepared / "left_out.csv")}

    assert written == {"lying.jpg": "1", "sub/pair.png": "2", "woman.jpg": "1"}
    assert reasons == {
        "again.jpg": "duplicate",
        "alone.png": "no caption",
        "blurred.jpg": "blurred",
        "empty.jpg": "unreadable",
        "house.png": "names nobody",
        "notes.md": "no photograph",
        "room.png": "no face",
        "script.jpg": "unreadable",
        "sub/smaller.webp": "duplicate",
        "three.png": "other number of people",
        "tiny.png": "bad size",
    }
    assert (prepared / "examples.png").is_file()
    assert (prepared / "left_out.png").is_file()


def test_the_set_is_whole(prepared, capsys):
    assert check_folder(prepared)
    assert "3 items, 0 broken" in capsys.readouterr().out


def test_people_are_where_the_words_say(prepared, pair):
    [row] = [row for row in rows(prepared / "items.csv") if row["photograph"] == "sub/pair.png"]
    stem = prepared / row["id"][:5] / row["id"]
    info = json.loads(stem.with_suffix(".json").read_text())
    segment_map = np.load(stem.with_suffix(".npy"))

    man, woman = info["segments"]
    assert info["caption"] == "a man and a smiling woman"
    assert [info["caption"][s["start"] : s["end"]] for s in (man, woman)] == [
        "a man",
        "a smiling woman",
    ]
    assert man["word"] == "man"
    assert {man["coco_label"], woman["coco_label"]} == {"person"}
    for segment in (man, woman):
        x1, y1, x2, y2 = segment["bbox"]
        rows_, columns = np.nonzero(segment_map == segment["id"])
        assert (x1, y1, x2, y2) == (
            columns.min(),
            rows_.min(),
            columns.max() + 1,
            rows_.max() + 1,
        )
        x, y = (segment["face"][0] + segment["face"][2]) // 2, segment["face"][3] - 20
        assert pair[1][y, x] == segment["id"]


def test_photographs_are_turned_upright(prepared, photographs):
    [row] = [row for row in rows(prepared / "items.csv") if row["photograph"] == "lying.jpg"]
    image = np.asarray(Image.open(prepared / row["id"][:5] / f"{row['id']}.jpg"), np.int16)
    upright = Image.open(photographs / "lying.jpg").transpose(Image.Transpose.ROTATE_270)

    assert np.abs(image - np.asarray(upright, np.int16)).mean() < 3


def test_training_and_tfds_read_it(prepared, tokenizer, tmp_path):
    source = open_source([prepared], "train")
    config = DataConfig(batch_size=1, resolution=64, subject_resolution=32)
    tfds_dataset.build(prepared, tmp_path / "dataset")

    examples = [
        make_example(record, config, tokenizer, np.random.default_rng(0), training=False)
        for record in source
    ]

    assert [int(example.has_subject.sum()) for example in examples] == [1, 1, 2]
    stored = open_source([tmp_path / "dataset"], "train")
    # Datasets do not store the boxes of faces.
    for record, original in zip(stored, source, strict=True):
        segments = [segment._replace(face=None) for segment in original.segments]
        assert list(record.segments) == segments


def test_the_same_command_changes_nothing(photographs, prepared):
    before = {path: path.stat().st_mtime_ns for path in (prepared / "00000").iterdir()}
    content = contents(prepared)

    prepare(photographs, prepared, HERE)

    assert {path: path.stat().st_mtime_ns for path in (prepared / "00000").iterdir()} == before
    assert contents(prepared) == content


def test_processes_and_a_resumed_run_write_the_same(photographs, prepared, tmp_path, monkeypatch):
    def stopped(*args):
        for count, result in enumerate(make_items(*args)):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr(module, "make_items", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(photographs, tmp_path / "set", HERE)
    monkeypatch.undo()
    assert not list((tmp_path / "set").glob("image_ids*"))
    with (tmp_path / "set" / "prepare.jsonl").open("ab") as journal:
        journal.write(b'{"name": "wom')  # cut short
    prepare(photographs, tmp_path / "set", PrepareConfig(workers=2))

    assert contents(tmp_path / "set") == contents(prepared)


def test_processes_that_cannot_start_are_an_error_at_once(photographs, tmp_path):
    """As in a script without `if __name__ == "__main__":`, whose processes run it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from fd_jax.data.prepare.prepare import PrepareConfig, prepare\n"
        f"prepare(Path({str(photographs)!r}), Path({str(tmp_path / 'set')!r}), "
        "PrepareConfig(workers=1))\n"
    )
    found = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode != 0
    assert "InputError: processes end as they start" in found.stderr


def test_changes_are_followed(small, portrait, tmp_path):
    out = tmp_path / "set"
    prepare(small, out, HERE)
    before = contents(out)
    (small / "woman.txt").write_text("a tall woman")
    (small / "lying.jpg").unlink()
    Image.fromarray(portrait("P007")[0]).save(small / "added.png")
    (small / "added.txt").write_text("a man")

    prepare(small, out, HERE)

    after = contents(out)
    assert [row["id"] for row in rows(out / "items.csv")] == ["00000002", "00000001"]
    assert after["image_ids.txt"] == b"00000002\n00000001\n"
    assert json.loads(after["00000/00000001.json"])["caption"] == "a tall woman"
    assert after["00000/00000000.jpg"] == before["00000/00000000.jpg"]  # kept, in no list
    assert [row["reason"] for row in rows(out / "left_out.csv")] == ["gone"]


def test_some_are_held_out(photographs, tmp_path):
    prepare(photographs, tmp_path / "set", PrepareConfig(workers=0, test_share=0.34))

    train = (tmp_path / "set" / "image_ids_train.txt").read_text().split()
    test = (tmp_path / "set" / "image_ids_test.txt").read_text().split()
    assert (len(train), len(test)) == (2, 1)
    assert sorted(train + test) == (tmp_path / "set" / "image_ids.txt").read_text().split()


def test_large_photographs_are_scaled_down(small, tmp_path):
    config = PrepareConfig(workers=0, item=ItemConfig(size=128))

    prepare(small, tmp_path / "set", config)

    with Image.open(tmp_path / "set" / "00000" / "00000000.jpg") as image:
        assert image.size == (128, 128)
    assert np.load(tmp_path / "set" / "00000" / "00000000.npy").shape == (128, 128)
    assert check_folder(tmp_path / "set")


def test_given_masks_are_used(small, tmp_path):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((256, 256), np.uint8)
    mask[40:250, 50:200] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "woman.png")

    prepare(small, tmp_path / "set", PrepareConfig(workers=0, masks=tmp_path / "masks"))

    np.testing.assert_array_equal(np.load(tmp_path / "set/00000/00000001.npy"), mask > 0)


def test_far_words_are_noted(small, tmp_path):
    (small / "woman.txt").write_text("a very " * 80 + "old woman")

    prepare(small, tmp_path / "set", HERE)

    notes = {row["photograph"]: row["notes"] for row in rows(tmp_path / "set" / "items.csv")}
    assert notes["lying.jpg"] == ""
    assert notes["woman.jpg"] == "the last person is named by token 162, training reads 75"


def test_nothing_to_learn_from_is_an_error(small, tmp_path):
    for path in small.glob("*.txt"):
        path.write_text("a house")

    with pytest.raises(
        InputError, match=r"none of the 2 files .*: 2 names nobody; .*left_out\.csv"
    ):
        prepare(small, tmp_path / "set", HERE)

    assert len(rows(tmp_path / "set" / "left_out.csv")) == 2


def test_a_full_disk_leaves_the_set_whole(small, tmp_path, monkeypatch):
    out = tmp_path / "set"
    prepare(small, out, HERE)
    before = contents(out)
    (small / "woman.txt").write_text("a tall woman")

    def full(source, target):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(item.os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        prepare(small, out, HERE)

    assert contents(out) == before
    assert check_folder(out)


def test_photographs_that_end_their_process_are_left_out(small, tmp_path):
    class Fatal(type(Path())):
        def __reduce__(self):
            return os._exit, (3,)

    tasks = [
        Task(name, kind(small / name), f"{i:08d}", "a person", None)
        for i, (name, kind) in enumerate(
            [("woman.jpg", Path), ("fatal.jpg", Fatal), ("lying.jpg", Path)]
        )
    ]

    results = {result.name: result for result in make_items(tasks, ItemConfig(), tmp_path, 1)}

    assert results["fatal.jpg"].reason == "unreadable"
    assert results["woman.jpg"].reason is results["lying.jpg"].reason is None


def test_folders_that_are_not_apart_are_refused(small, tmp_path):
    for out in (small, small / "set", tmp_path):
        with pytest.raises(InputError, match="lie in one another"):
            prepare(small, out, HERE)


def test_folders_of_something_else_are_refused(small, photographs, prepared, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()

    with pytest.raises(InputError, match="is not empty"):
        prepare(small, tmp_path / "full", HERE)
    with pytest.raises(InputError, match="was prepared from"):
        prepare(small, prepared, HERE)
    with pytest.raises(InputError, match="masks folder"):
        prepare(small, tmp_path / "set", PrepareConfig(masks=tmp_path / "absent"))
    with pytest.raises(InputError, match=r"caption: .a man <\|image\|>. holds the subject marker"):
        prepare(small, tmp_path / "set", PrepareConfig(caption="a man <|image|>"))
