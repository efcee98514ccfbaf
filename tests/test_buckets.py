"""Paths in buckets, against a server on loopback."""

import importlib.util
import json
import os
import pickle
from pathlib import Path

import pytest

from fd_jax import buckets
from fd_jax.buckets import BucketPath, GrowingObject, fetch
from fd_jax.config import Config
from fd_jax.errors import InputError, OutputError
from fd_jax.files import atomic_file, check_folder, names_in, read_json, to_path, write_json
from fd_jax.training.run_lock import LOCK_FILE, RunLock
from tests.helpers.bucket_server import serve

HAS_GCSFS = importlib.util.find_spec("gcsfs") is not None
needs_gcsfs = pytest.mark.skipif(not HAS_GCSFS, reason="gcsfs is not installed: fd_jax[gcs]")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serve("bucket", "other") as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        buckets._file_system.cache_clear()
        yield server
    buckets._file_system.cache_clear()


@pytest.fixture
def folder(server, request):
    return to_path(f"gs://bucket/{request.node.name}")


@pytest.mark.parametrize("path", ["gs://bucket/run", Path("gs://bucket/run")], ids=str)
def test_without_its_package_a_bucket_is_refused_by_name(path, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for use in (to_path, check_folder):
        with pytest.raises(InputError, match=r"gs://bucket/run is in a bucket, .*fd_jax\[gcs\]"):
            use(path)
    assert not list(tmp_path.iterdir())


@needs_gcsfs
def test_paths_keep_their_bucket():
    path = to_path("gs://bucket/a/b")
    assert isinstance(path, BucketPath)
    assert str(path) == f"{path}" == os.fspath(path) == "gs://bucket/a/b"
    assert str(path / "c") == "gs://bucket/a/b/c"
    assert str(path.parent) == "gs://bucket/a"
    assert str(pickle.loads(pickle.dumps(path))) == "gs://bucket/a/b"
    assert str(to_path(Path("gs://bucket/a"))) == "gs://bucket/a"  # of a command line
    assert path.absolute() == path


@needs_gcsfs
def test_a_config_knows_paths_in_buckets():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Some(Config):
        one: Path
        many: tuple[Path, ...] = ()

    some = Some(Path("gs://bucket/a"), (Path("x"), Path("gs://bucket/b")))
    assert [str(path) for path in (some.one, *some.many)] == ["gs://bucket/a", "x", "gs://bucket/b"]
    assert all(isinstance(path, BucketPath) for path in (some.one, some.many[1]))


@needs_gcsfs
def test_objects_are_files_and_prefixes_are_folders(server, folder):
    assert not folder.exists()
    assert names_in(folder) == set()
    check_folder(folder)
    write_json(folder / "a/b.json", {"x": 1})
    (folder / "c").write_text("é")
    assert read_json(folder / "a/b.json") == {"x": 1}
    assert (folder / "c").read_text() == "é"
    assert names_in(folder) == {"a", "c"}
    assert folder.is_dir()
    assert (folder / "a").is_dir()
    assert (folder / "c").is_file()
    assert not (folder / "a").is_file()
    (folder / "a").rename(folder / "z")
    assert sorted(folder.files()) == ["c", "z/b.json"]
    folder.rmtree()
    assert not folder.exists()


@needs_gcsfs
def test_a_file_is_written_whole_or_not_at_all(server, folder):
    with pytest.raises(ZeroDivisionError), atomic_file(folder / "x") as temporary:
        temporary.write_bytes(b"half" * (1 // 0))
    assert not folder.exists()
    with atomic_file(folder / "x", overwrite=False) as temporary:
        temporary.write_text("whole")
    with pytest.raises(FileExistsError), atomic_file(folder / "x", overwrite=False) as temporary:
        temporary.write_text("another")
    assert (folder / "x").read_text() == "whole"


@needs_gcsfs
def test_copies_are_kept_until_the_object_changes(server, folder):
    path = folder / "model.bin"
    path.write_bytes(b"1")
    copy = fetch(path)
    assert (copy.name, copy.read_bytes()) == ("model.bin", b"1")
    server.requests.clear()
    assert fetch(path) == copy
    assert not any("alt=media" in request for _, request in server.requests)
    path.write_bytes(b"2")
    assert fetch(path).read_bytes() == b"2"
    assert copy.read_bytes() == b"1"
    assert {p.name for p in fetch(folder).iterdir()} == {"model.bin"}
    with pytest.raises(FileNotFoundError):
        fetch(folder / "nothing")


@needs_gcsfs
def test_names_that_lead_out_of_the_cache_are_refused(server, folder):
    server.put("bucket", f"{folder.key}/../../../evil", b"")
    with pytest.raises(ValueError, match="evil"):
        fetch(folder)


@needs_gcsfs
def test_text_that_grows_is_kept(server, folder):
    for line in ("a\n", "b\n"):
        growing = GrowingObject(folder / "log")
        growing.write(line)
        growing.flush()  # not yet a minute
        growing.close()
    assert (folder / "log").read_text() == "a\nb\n"


@needs_gcsfs
def test_refusals_are_named(server, folder):
    with pytest.raises(OutputError, match="the bucket missing does not exist"):
        check_folder("gs://missing/x")
    server.read_only.add("other")
    with pytest.raises(OutputError, match=r"gs://other/x: no permission for this object"):
        check_folder("gs://other/x")
    server.read_only.clear()
    server.forbidden.add("other")
    with pytest.raises(PermissionError, match="no permission"):
        to_path("gs://other/x").read_bytes()
    server.forbidden.clear()


@needs_gcsfs
def test_a_server_that_is_not_available_is_asked_again(server, folder, monkeypatch):
    async def sleep(seconds):
        pass

    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", sleep)
    server.unavailable, server.refused = 4, 0
    (folder / "x").write_text("1")
    assert server.refused == 4
    server.unavailable = 8  # more than one call of gcsfs asks
    with pytest.warns(UserWarning, match="tried again"):
        assert (folder / "x").read_text() == "1"
    monkeypatch.setattr(buckets, "_PATIENCE", -1.0)
    server.unavailable = 100
    with pytest.raises(OSError, match="overloaded"):
        (folder / "x").read_text()
    server.unavailable = 0
    assert (folder / "x").read_text() == "1"


@needs_gcsfs
def test_one_run_at_a_time_holds_a_bucket(server, folder):
    with RunLock(folder, heartbeat=0.05) as lock:
        with pytest.raises(InputError, match=r"gs://.* is in use"), RunLock(folder):
            pass
        lock.check()
    assert not folder.exists()


@needs_gcsfs
def test_the_lock_of_a_dead_run_elsewhere_is_taken_over_by_one(server, folder):
    holder = {"host": "elsewhere", "pid": 1, "token": "dead"}
    (folder / LOCK_FILE).write_text(json.dumps(holder))
    with RunLock(folder, patience=0.5) as lock:
        assert json.loads((folder / LOCK_FILE).read_bytes())["token"] != "dead"
        lock.check()
    (folder / LOCK_FILE).write_text(json.dumps(holder))
    generation = (folder / LOCK_FILE).generation()
    (folder / LOCK_FILE).write_text(json.dumps(holder))  # the heartbeat
    with pytest.raises(FileExistsError):
        (folder / LOCK_FILE).unlink_generation(generation)


@needs_gcsfs
def test_a_run_whose_lock_was_taken_notices(server, folder):
    with RunLock(folder, heartbeat=0.02) as lock:
        (folder / LOCK_FILE).write_text(json.dumps({"token": "another"}))
        lock._thread.join(10)
        with pytest.raises(InputError, match="was taken over"):
            lock.check()
    assert (folder / LOCK_FILE).exists()  # that of the other run
