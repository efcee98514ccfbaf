"""Writes that are whole or not there, and paths that are no paths."""

import os
import stat
from pathlib import Path

import pytest

from fd_jax.errors import InputError, OutputError
from fd_jax.files import (
    atomic_file,
    atomic_folder,
    check_folder,
    check_replaceable,
    local_path,
)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


URLS = ("abfs://bucket/run", "s3://bucket", "HF://user/model", "http://host/x", "foo+bar://a b/c")


@pytest.mark.parametrize("url", [*URLS, *(Path(url) for url in URLS)], ids=str)
def test_urls_are_refused_by_name(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(url).replace("://", ":/").replace(":/", "://")
    with pytest.raises(InputError) as error:
        local_path(url)
    assert str(error.value).startswith(f"{name} is a URL, expected a path on a disk")
    with pytest.raises(InputError, match="is a URL"):
        check_folder(url)
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    "path", ["a:b", "C:/x", "run:/x", "/gs://x", "x/gs://x", "lr[1e-3]", "%41 {} *?", "é\n", "x:"]
)
def test_other_names_are_paths(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:").mkdir()
    assert local_path(path) == Path(path)
    assert local_path(Path(path)) == Path(path)


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "a"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    with atomic_file(path) as temporary:
        temporary.write_text("newer")
        assert path.read_text() == "new"
    assert path.read_text() == "newer"
    assert files(tmp_path) == {"a"}


def test_an_existing_file_is_kept_if_asked(tmp_path):
    (tmp_path / "a").write_text("old")
    with (
        pytest.raises(FileExistsError),
        atomic_file(tmp_path / "a", overwrite=False) as temporary,
    ):
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "old"
    with atomic_file(tmp_path / "b", overwrite=False) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "b").read_text() == "new"
    assert files(tmp_path) == {"a", "b"}


def write_half(write, path, error):
    with write(path) as temporary:
        (temporary / "d" if temporary.is_dir() else temporary).write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_a_failed_block_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_text("old")
    before = files(tmp_path)
    for write, path in ((atomic_file, tmp_path / "a"), (atomic_folder, tmp_path / "b")):
        with pytest.raises(error):
            write_half(write, path, error)
    assert files(tmp_path) == before
    assert (tmp_path / "a").read_text() == "old"


def test_the_mode_is_that_of_other_new_files(tmp_path):
    (tmp_path / "other").touch()
    with atomic_file(tmp_path / "a") as temporary:
        temporary.unlink()
        temporary.write_text("x")
        temporary.chmod(stat.S_IRUSR)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_names_may_be_as_long_as_they_can(tmp_path):
    with atomic_file(tmp_path / ("a" * 255)) as temporary:
        temporary.touch()
    with atomic_folder(tmp_path / ("b" * 255)) as new:
        (new / "c").touch()
    assert len(files(tmp_path)) == 3


def test_a_folder_is_replaced_and_some_files_are_kept(tmp_path):
    out = tmp_path / "new" / "out"
    for text in ("first", "second"):
        with atomic_folder(out, kept=["README.md"]) as new:
            (new / "data").write_text(text)
        assert (out / "data").read_text() == text
        (out / "README.md").write_text("kept")
        (out / "other").write_text("not kept")
    with atomic_folder(out, kept=["README.md", "absent"]):
        pass
    assert files(out) == {"README.md"}
    assert os.listdir(out.parent) == ["out"]


def test_the_folder_that_is_there_comes_back_if_its_place_cannot_be_taken(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data").write_text("old")
    rename = Path.rename

    def refuse(path, target):
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"), atomic_folder(tmp_path / "out"):
        pass
    assert files(tmp_path) == {"out", "out/data"}


def test_foreign_folders_are_not_replaced(tmp_path):
    options = {"written": ["a"], "kept": ["b"]}
    check_replaceable(tmp_path / "new", overwrite=False, **options)
    (tmp_path / "b").touch()
    check_replaceable(tmp_path, overwrite=False, **options)
    (tmp_path / "a").touch()
    check_replaceable(tmp_path, overwrite=True, **options)
    with pytest.raises(OutputError, match="is not empty, expected a new folder, or --overwrite"):
        check_replaceable(tmp_path, overwrite=False, **options)
    (tmp_path / "c").touch()
    with pytest.raises(OutputError, match=r"holds \['c'\], which are never written"):
        check_replaceable(tmp_path, overwrite=True, **options)
    with pytest.raises(OutputError, match="cannot be read"):
        check_replaceable(tmp_path / "a", overwrite=True, **options)
