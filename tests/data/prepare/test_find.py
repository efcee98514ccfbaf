"""Photographs of a folder, and their captions."""

import os
from pathlib import Path

import pytest

from fd_jax.data.prepare.find import clean, find_copies, find_photographs, read_captions
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.errors import InputError


def write(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return root


def test_every_file_is_accounted_for(tmp_path):
    root = write(tmp_path, **{"b.JPG": "1", "a__c.webp": "2", "a__c.txt": "a man", "clip.mp4": "3"})
    write(root, **{".hidden.jpg": "4", "a__._c.jpg": "5"})
    (root / "loop").symlink_to(root)

    found = find_photographs(root)

    assert found.photographs == [Path("b.JPG"), Path("a/c.webp")]
    reasons = {str(path): problem.reason for path, problem in found.left_out.items()}
    assert reasons == {
        ".hidden.jpg": "hidden file",
        "a/._c.jpg": "hidden file",
        "clip.mp4": "no photograph",
    }


def test_folders_without_photographs_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no photograph"):
        find_photographs(tmp_path)
    with pytest.raises(InputError, match="does not exist or is not a folder"):
        find_photographs(tmp_path / "absent")


def test_of_copies_the_one_with_a_caption_stays(tmp_path):
    root = write(tmp_path, **{"a.jpg": "same", "b.jpg": "same", "c.jpg": "else"})
    paths = [Path("a.jpg"), Path("b.jpg"), Path("c.jpg")]

    copies = find_copies(root, paths, captioned=[Path("b.jpg")])

    assert {path: problem.detail for path, problem in copies.items()} == {
        Path("a.jpg"): "the same file as b.jpg"
    }


def test_captions_are_read_from_the_nearest_place(tmp_path):
    root = write(
        tmp_path,
        **{
            "one.txt": "\ufeffa  man\n on a bench\n",
            "two.jpg.txt": "a woman",
            "metadata.jsonl": '{"file_name": "one.jpg", "text": "unused"}\n'
            '{"file_name": "a/three.jpg", "text": "a girl"}\n\n'
            '{"file_name": "a/four.jpg", "text": "unused"}',
            "a__metadata.csv": 'file_name,id,caption\nfour.jpg,1,"a boy, smiling"\nfive.jpg,2,\n',
        },
    )
    names = ["one.jpg", "two.jpg", "a/three.jpg", "a/four.jpg", "a/five.jpg"]

    captions = read_captions(root, map(Path, names), default="a person")

    assert [captions[Path(name)] for name in names] == [
        "a man on a bench",
        "a woman",
        "a girl",
        "a boy, smiling",
        "a person",
    ]
    assert Path("a/five.jpg") not in read_captions(root, map(Path, names), default=None)


def test_captions_that_are_no_text_are_told(tmp_path):
    (tmp_path / "one.txt").write_bytes(b"\xff\xfe\x00")

    caption = read_captions(tmp_path, [Path("one.jpg")], default="a man")[Path("one.jpg")]

    assert isinstance(caption, LeftOut)
    assert caption.reason == "bad caption"


@pytest.mark.parametrize("caption", [" \n", 3, "a man <|image|>", "a" * 3000, "\ud800"])
def test_captions_of_no_use_are_told(caption):
    with pytest.raises(LeftOut, match="caption"):
        clean(caption)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", "{", "cannot be read"),
        ("metadata.jsonl", "[1]", "row 1 has no file_name"),
        ("metadata.csv", "file_name,label\na.jpg,1\n", "columns file_name, label, expected one of"),
        ("metadata.csv", 'file_name,text\na.jpg,"1\n', "cannot be read"),
    ],
)
def test_damaged_metadata_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)

    with pytest.raises(InputError, match=message):
        read_captions(tmp_path, [Path("a.jpg")], default=None)


def test_names_that_are_no_utf8_are_found(tmp_path):
    name = os.fsdecode(b"Jos\xe9.jpg")
    (tmp_path / name).write_bytes(b"1")
    (tmp_path / name).with_suffix(".txt").write_text("a man")

    found = find_photographs(tmp_path)

    assert read_captions(tmp_path, found.photographs, default=None) == {Path(name): "a man"}
