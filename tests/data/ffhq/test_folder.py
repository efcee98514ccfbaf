import io
import os
import pathlib
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fd_jax.data import cli as commands
from fd_jax.data.ffhq import check, tfds_dataset
from fd_jax.data.ffhq.folder import read_ids
from fd_jax.data.ffhq.record import DataError, decode_image, decode_map, read_info
from fd_jax.data.ffhq.source import open_source
from fd_jax.errors import InputError
from tests.helpers.ffhq_items import encoded, item, write_folder


@pytest.fixture(scope="session")
def dataset(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("dataset") / "new"
    tfds_dataset.build(folder, target)
    return target


def test_ids_are_those_of_their_file(folder, tmp_path):
    assert read_ids(folder, "train") == [f"0000000{i}" for i in range(7)]
    assert read_ids(folder, "test") == ["00000009", "00000007", "00000008"]
    assert len(read_ids(folder, "all")) == 10
    (tmp_path / "image_ids.txt").write_bytes(b"\xef\xbb\xbf1 \r\n\r\n  2\r\n")
    assert read_ids(tmp_path, "all") == ["1", "2"]


@pytest.mark.parametrize("name", ["../1", "a\\b", ".", "..", "a\0"])
def test_ids_are_no_paths(tmp_path, name):
    (tmp_path / "image_ids.txt").write_text(f"1\n{name}\n")
    with pytest.raises(DataError, match=r"image_ids.txt has the id .*, expected a plain file name"):
        read_ids(tmp_path, "all")


def test_items_of_a_folder(folder):
    source = open_source([folder], "test")

    assert len(source) == 3
    assert source.ids == ["00000009", "00000007", "00000008"]
    record = source[1]
    assert (record.index, record.id) == (1, "00000007")
    assert record.image == (folder / "00000" / "00000007.jpg").read_bytes()
    assert record.caption.startswith("a man, a woman")
    [segment] = record.segments
    assert segment == (1, (0, 4, 8, 28), 0, 5, "person", None)
    np.testing.assert_array_equal(source.num_subjects(["person"]), [5, 1, 1])
    np.testing.assert_array_equal(source.num_subjects(["dog"]), [0, 0, 0])


def test_several_roots_are_joined(folder, dataset):
    source = open_source([folder, dataset, folder], "test")

    assert len(source) == 9
    assert source.ids[4] == f"{dataset}/00000007"
    assert [source[i].id for i in range(9)] == source.ids
    assert [source[i].index for i in range(9)] == list(range(9))
    assert source[1].image == source[4].image == source[7].image
    np.testing.assert_array_equal(source.num_subjects(["person"]), [5, 1, 1] * 3)


@pytest.mark.parametrize("kind", ["folder", "dataset"])
def test_sources_can_be_sent_to_workers(request, kind):
    source = open_source([request.getfixturevalue(kind)], "train")
    first = source[0]

    copy = pickle.loads(pickle.dumps(source))

    assert copy.ids == source.ids
    assert copy[0] == first


@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_dataset_equals_its_folder(folder, dataset, split):
    first, second = open_source([folder], split), open_source([dataset], split)

    assert first.ids == second.ids
    assert first.ids_by_root == second.ids_by_root
    np.testing.assert_array_equal(first.num_subjects(["person"]), second.num_subjects(["person"]))
    for i in range(len(first)):
        one, two = first[i], second[i]
        assert one._replace(segment_map=b"") == two._replace(segment_map=b"")
        height, width, _ = decode_image(one.image, "x").shape
        maps = [decode_map(record.segment_map, "x", height, width) for record in (one, two)]
        np.testing.assert_array_equal(*maps)


def test_a_dataset_stores_each_item_once(dataset):
    found = sorted(path.name for path in dataset.rglob("*array_record*"))
    assert [name.split(".")[0] for name in found] == [
        "ffhq_fastcomposer-test",
        "ffhq_fastcomposer-train",
    ]
    assert [path.name for path in dataset.iterdir()] == ["ffhq_fastcomposer"]
    version = dataset / "ffhq_fastcomposer" / "1.0.0"
    for folder in (version, version.parent):
        assert len(open_source([folder], "all")) == 10


def test_ids_of_several_lists_and_of_none(tmp_path):
    root = write_folder(tmp_path / "a", [item(seed=i) for i in range(5)], train=(3, 1), test=(1, 0))

    tfds_dataset.build(root, tmp_path / "b")

    for split in ("train", "test", "all"):
        first, second = (open_source([tmp_path / name], split) for name in "ab")
        assert first.ids == second.ids
        assert [first[i].image for i in range(len(first))] == [
            second[i].image for i in range(len(second))
        ]


def test_a_split_that_is_not_there(tmp_path):
    root = write_folder(tmp_path / "a", [item()])
    tfds_dataset.build(root, tmp_path / "b")
    with pytest.raises(DataError, match=r"a/image_ids_test.txt does not exist, expected a file"):
        open_source([root], "test")
    with pytest.raises(DataError, match="has no split 'test', only train, all"):
        open_source([tmp_path / "b"], "test")


def test_existing_datasets_stay(folder, dataset):
    before = sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*"))
    with pytest.raises(DataError, match="is a dataset already, expected another folder"):
        tfds_dataset.build(folder, dataset)
    assert sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*")) == before


@pytest.mark.parametrize(
    "name", ["a[0:1] [v2]", "{DATASET} %s", "a*b?@3", "x.incomplete", os.fsdecode(b"\xff\xe9")]
)
def test_folders_may_have_any_name(tmp_path, name):
    root = write_folder(tmp_path / name / "photos", [item(2, seed=i) for i in range(2)])
    tfds_dataset.build(root, tmp_path / name / "built")
    for split in ("train", "all"):
        source = open_source([tmp_path / name / "built"], split)
        assert [source[i].id for i in range(2)] == ["00000000", "00000001"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_broken_items_are_not_built(tmp_path):
    root = write_folder(tmp_path / "a", [item(), item(segment_map=np.zeros((3, 3), np.uint8))])
    with pytest.raises(DataError, match=r"item 00000001: segment map: .* lists all such items"):
        tfds_dataset.build(root, tmp_path / "b")
    assert not any(path.is_file() for path in (tmp_path / "b").rglob("*"))


@pytest.mark.parametrize("name", ["dataset_info.json", "metadata.json", "features.json", "record"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]"])
def test_damaged_datasets(folder, tmp_path, name, content):
    tfds_dataset.build(folder, tmp_path)
    [path] = tmp_path.rglob(f"*train.array_{name}*" if name == "record" else name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"root .* holds no dataset|is damaged|cannot be read"):
        open_source([tmp_path], "train")[0]


def test_roots_that_cannot_be_used(tmp_path, folder):
    with pytest.raises(DataError, match="no root is given"):
        open_source([], "train")
    with pytest.raises(DataError, match="nowhere does not exist or is not a folder"):
        open_source([folder, tmp_path / "nowhere"], "train")
    with pytest.raises(DataError, match=r"holds no dataset: expected image_ids_train.txt or"):
        open_source([tmp_path], "train")
    (tmp_path / "image_ids_train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"there is no item in split 'train' of .* expected at"):
        open_source([tmp_path], "train")
    assert len(open_source([tmp_path, folder], "train")) == 7


def test_absent_items_are_counted_and_named(tmp_path):
    root = write_folder(tmp_path, [item()] * 4)
    (root / "00000" / "00000002.npy").unlink()
    (root / "image_ids_train.txt").write_text("00000000\n00000002\n77777777\n")
    with pytest.raises(DataError, match=r"names 2 items .* the first 00000002: .*00000002.npy mis"):
        open_source([root], "train")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (b"{", "damaged"),
        (b"\xff", "damaged"),
        (b"[" * 100_000, "damaged"),
        (b"[]", "no caption"),
        (b'{"caption": 3, "segments": []}', "no caption"),
        (b'{"caption": "\\ud800", "segments": []}', "no caption"),
        (b'{"caption": "a"}', "no segments"),
        (b'{"caption": "a", "segments": [3]}', "a segment is 3, expected an object"),
        (b'{"caption": "a", "segments": [{}]}', "id of a segment is None, expected a whole number"),
    ],
)
def test_damaged_json(info, message):
    with pytest.raises(DataError, match=f"item a/b: .*{message}"):
        read_info(info, "a/b")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("id", True, "a whole number"),
        ("end", 3.0, "a whole number"),
        ("start", "3", "a whole number"),
        ("bbox", [1, 2, 3], "four whole numbers"),
        ("bbox", [1, 2, 3, 4.5], "four whole numbers"),
        ("bbox", None, "four whole numbers"),
        ("coco_label", 3, "a string"),
    ],
)
def test_values_of_another_type(key, value, expected):
    content = item()
    content["segments"][0][key] = value
    with pytest.raises(DataError, match=f"{key} of a segment is .*, expected {expected}"):
        read_info(encoded(content)[".json"], "x")


@pytest.mark.parametrize(("end", "start"), [(5, 2), (14, 9), (6, 2), (1, 0), (36, 33), (99, 33)])
def test_segments_without_start_are_named_by_their_last_word(end, start):
    """The released loaders read no start."""
    content = item()
    del content["segments"][0]["start"]
    content["segments"][0]["end"] = end
    _, [segment] = read_info(encoded(content)[".json"], "x")
    caption = content["caption"]
    assert segment.start == start, caption[segment.start : end]
    content["segments"][0]["start"] = None
    with pytest.raises(DataError, match="start of a segment is None"):
        read_info(encoded(content)[".json"], "x")


@pytest.mark.parametrize("key", ["id", "end", "start"])
@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 10**30])
def test_numbers_have_32_bits(key, value):
    content = item()
    content["segments"][0][key] = value
    with pytest.raises(DataError, match=f"{key} of a segment is .*, expected a whole number"):
        read_info(encoded(content)[".json"], "x")


def test_a_folder_without_starts_is_checked_built_and_read(tmp_path):
    items = [item(2, seed=i) for i in range(2)]
    for segment in (segment for content in items for segment in content["segments"]):
        del segment["start"]
    root = write_folder(tmp_path / "a", items)
    assert check.check_folder(root, tmp_path / "page.png")
    tfds_dataset.build(root, tmp_path / "b")
    first, second = (open_source([tmp_path / name], "train")[1] for name in "ab")
    assert [segment.start for segment in first.segments] == [2, 9]
    assert first.segments == second.segments


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


MAP = np.arange(6, dtype=np.uint8).reshape(2, 3)


@pytest.mark.parametrize("content", [npy(MAP), npy(np.asfortranarray(MAP)), png(MAP)])
def test_maps_may_be_npy_or_png(content):
    np.testing.assert_array_equal(decode_map(content, "x", 2, 3), MAP)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(np.array([{}] * 6).reshape(2, 3), allow_pickle=True), "object of shape"),
        (npy(MAP.astype(np.int64)), "int64 of shape"),
        (npy(MAP.T), r"uint8 of shape \(3, 2\), expected uint8 of shape \(2, 3\)"),
        (npy(MAP.ravel()), r"uint8 of shape \(6,\)"),
        (npy(MAP)[:-1], "5 bytes of pixels, expected 6"),
        (npy(MAP) + b"0", "7 bytes of pixels, expected 6"),
        (npy(MAP).replace(b"(2, 3)", b"(2,9**9)"), "cannot be read"),
        (npy(MAP)[:50], "cannot be read"),
        (npy(MAP).replace(b"\x01\x00", b"\x03\x00", 1), "cannot be read: version"),
        (b"", "cannot be read"),
        (b"PK\x03\x04" + npy(MAP), "cannot be read"),
        (png(MAP)[:-30], "cannot be read"),
        (png(MAP.T), r"L of shape \(3, 2\)"),
        (png(np.repeat(MAP[..., None], 3, axis=2)), "RGB of shape"),
    ],
)
def test_maps_that_cannot_be_used(content, message):
    with pytest.raises(DataError, match=f"^item x: its segment map .*{message}"):
        decode_map(content, "x", 2, 3)


def test_files_that_are_too_large(tmp_path):
    root = write_folder(tmp_path, [item()])
    os.truncate(root / "00000" / "00000000.npy", 2**29 + 1)  # a hole, not data
    with pytest.raises(DataError, match="has 536870913 bytes, expected 536870912 at most"):
        open_source([root], "train")[0]


def broken(**changes):
    content = item(2)
    content["segments"][1] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (item(image=b"JPEG"), "image", "cannot be read"),
        (item(image=encoded(item(height=200))[".jpg"][:-500]), "image", "truncated"),
        (item(image=png(item()["image"])), "image", "it is no JPEG, whatever its name says"),
        (item(segment_map=MAP), "segment map", "expected uint8 of shape"),
        (item(segment_map=np.zeros((32, 48))), "segment map", "float64 of shape"),
        (item(json=b"{"), "JSON", "damaged"),
        (broken(bbox=[8, 4, 16]), "JSON", "bbox of a segment is"),
        (broken(bbox=[8, 4, 49, 28]), "bbox", "expected 0 <= x1 < x2 <= 48"),
        (broken(bbox=[8, 4, 8, 28]), "bbox", "expected 0 <= x1 < x2 <= 48"),
        (broken(id=77), "absent segment", "has no pixel in the segment map"),
        (broken(bbox=[30, 4, 40, 20]), "absent segment", "has no pixel in its bbox"),
        (broken(end=100), "offsets", "expected 0 <= start < end <= 36"),
        (broken(end=13), "words", "'a woma' of segment 2 do not end where a word does"),
        (broken(end=15), "words", "'a woman,' of segment 2"),
        (broken(start=0, end=5), "same words", "2 segments are named by words that end at"),
        (item(0, caption="<|IMAGE|>"), "caption", "holds"),
    ],
)
def test_the_check_names_every_broken_item(tmp_path, capsys, content, kind, message):
    root = write_folder(tmp_path, [item(seed=1), content, item(3, seed=2), content])

    assert not check.check_folder(root)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines[:-1]] == [["00000001", kind], ["00000003", kind]]
    assert all(message in line for line in lines[:-1])
    assert lines[-1] == f"{root}: 4 items, 2 broken: 2 x {kind}"


def test_the_check_looks_for_missing_files_and_duplicates(tmp_path, capsys):
    root = write_folder(tmp_path, [item(seed=i) for i in range(3)])
    (root / "00000" / "00000001.json").unlink()
    with (root / "image_ids_train.txt").open("a") as file:
        file.write("00000002\n00000009\n")

    assert not check.check_folder(root)

    out = capsys.readouterr().out
    assert "00000002: duplicate id: image_ids_train.txt has it 2 times" in out
    assert f"00000001: missing file: {root}/00000/00000001.json" in out
    assert out.count("00000009: missing file") == 3
    assert out.endswith("4 items, 3 broken: 4 x missing file, 1 x duplicate id\n")


@pytest.mark.parametrize("page", ["gs://bucket/page.png", "file/page.png", "file/x/page.png"])
def test_a_page_that_cannot_be_written_is_refused_first(folder, tmp_path, monkeypatch, page):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    monkeypatch.setattr(check, "examine", None)
    with pytest.raises(InputError, match=r"gs://bucket/page.png is a URL|cannot write to .*file"):
        check.check_folder(folder, pathlib.Path(page))


def test_a_folder_in_a_bucket_is_refused_by_name(tmp_path):
    where = pathlib.Path("gs://bucket/photos")
    for use in (check.check_folder, lambda folder: tfds_dataset.build(folder, tmp_path)):
        with pytest.raises(InputError, match=r"^gs://bucket/photos is a URL"):
            use(where)


def test_the_check_of_a_sound_folder_draws_a_page(folder, tmp_path, capsys, monkeypatch):
    page = tmp_path / "page.png"
    monkeypatch.setattr(sys, "argv", ["ffhq", "check", str(folder), "--page", str(page)])

    with pytest.raises(SystemExit) as end:
        commands.main()

    assert end.value.code == 0
    assert capsys.readouterr().out == f"{folder}: 10 items, 0 broken\n"
    with Image.open(page) as image:
        assert image.width > 5 * 224
        assert image.height > 8 * 224


def test_commands(folder, tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "fd_jax.data.ffhq", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    built = run("build", folder, tmp_path / "new")
    assert (built.returncode, built.stdout) == (
        0,
        f"wrote 10 items to {tmp_path}/new/ffhq_fastcomposer/1.0.0\n",
    )
    assert "10/10" in built.stderr
    assert len(open_source([tmp_path / "new"], "train")) == 7

    (folder_copy := tmp_path / "broken").mkdir()
    write_folder(folder_copy, [item(image=b"")])
    checked = run("check", folder_copy)
    assert checked.returncode == 1
    assert "1 broken: 1 x image" in checked.stdout


def test_commands_say_what_is_wrong(tmp_path, monkeypatch, capsys):
    for command in (["check", tmp_path / "no"], ["build", tmp_path, tmp_path / "new"]):
        monkeypatch.setattr(sys, "argv", ["ffhq", *map(str, command)])
        with pytest.raises(SystemExit) as end:
            commands.main()
        assert end.value.code == 1
        assert re.match(r"error: .*(does not exist|names no item)", capsys.readouterr().err)


def test_help_needs_neither_jax_nor_tfds():
    code = (
        "import sys\nfrom fd_jax.data import cli\nsys.argv = ['fd-data', 'check', '--help']\n"
        "try:\n    cli.main()\nfinally:\n"
        "    slow = {'jax', 'flax', 'tensorflow_datasets', 'grain', 'transformers'}\n"
        "    print(sorted(slow & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--page" in done.stdout
    assert done.stderr.strip() == "[]"
