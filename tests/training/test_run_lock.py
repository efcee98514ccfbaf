"""One run at a time in a folder: who is refused, and whose lock is taken over."""

import contextlib
import json
import os
import subprocess
import threading

import jax
import pytest

from fd_jax.errors import InputError
from fd_jax.training import run_lock
from fd_jax.training.run_lock import LOCK_FILE, RunLock


def quick(workdir, **options):
    """A lock that waits for heartbeats of other hosts only briefly."""
    return RunLock(workdir, **({"heartbeat": 0.02, "patience": 0.4} | options))


def write_lock(workdir, **changes):
    """Writes the lock of a process, by default of this one."""
    content = run_lock._this_process() | {"token": "theirs"} | changes
    (workdir / LOCK_FILE).write_text(json.dumps(content))


@contextlib.contextmanager
def touched(path):
    """Updates a file's modification time, as its holder does, until the block ends."""
    ended = threading.Event()

    def touch():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_the_second_is_refused_in_one_line_until_the_first_ends(tmp_path):
    with quick(tmp_path):
        with pytest.raises(InputError, match=rf"is in use: process {os.getpid()} on ") as error:
            quick(tmp_path).__enter__()
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)
        assert (tmp_path / LOCK_FILE).exists()
    assert list(tmp_path.iterdir()) == []
    with quick(tmp_path):
        pass


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), quick(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_is_dead_even_before_it_is_waited_for(tmp_path):
    other = subprocess.Popen(["sleep", "60"])
    try:
        write_lock(tmp_path, pid=other.pid, started=run_lock._start_time(other.pid))
        with pytest.raises(InputError, match=f"process {other.pid} on"):
            quick(tmp_path).__enter__()
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        with RunLock(tmp_path):  # no heartbeat is waited for: this would take half a minute
            pass
    finally:
        other.kill()
        other.wait()


DEAD = {
    "its process id was given to another process": {"started": "1"},
    "no such process": {"pid": 2**22 + 1},
    "before the host was restarted": {"boot": "another"},
    "another host that is silent": {"host": "elsewhere"},
    "another container that is silent": {"namespace": "pid:[1]"},
    "no process at all": {"pid": None},
}


@pytest.mark.parametrize("case", DEAD)
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, case):
    write_lock(tmp_path, **DEAD[case])
    with quick(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_a_process_elsewhere_is_alive_while_its_heartbeat_is(tmp_path, changes):
    write_lock(tmp_path, **changes)
    path = tmp_path / LOCK_FILE
    os.utime(path, (0, 0))  # by a clock that is far behind
    with touched(path), pytest.raises(InputError, match="is in use"):
        quick(tmp_path).__enter__()
    assert json.loads(path.read_text())["token"] == "theirs"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_lock_is_taken_over_if_it_is_silent(tmp_path, content):
    path = tmp_path / LOCK_FILE
    path.write_bytes(content)
    with touched(path), pytest.raises(InputError, match="process unknown"):
        quick(tmp_path).__enter__()
    with quick(tmp_path):
        pass


@pytest.mark.parametrize("is_stale", [False, True])
def test_of_many_that_start_at_once_one_gets_the_lock(tmp_path, is_stale):
    for i in range(10):
        workdir = tmp_path / str(i)
        workdir.mkdir()
        if is_stale:
            write_lock(workdir, pid=2**22 + 1)
        barrier, got, refused = threading.Barrier(6), [], []

        def start(workdir=workdir, barrier=barrier, got=got, refused=refused):
            lock = quick(workdir)
            barrier.wait()
            try:
                got.append(lock.__enter__())
            except InputError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 5)
        got[0].__exit__()
        assert list(workdir.iterdir()) == []


def test_a_lock_that_was_taken_over_is_noticed_and_left_alone(tmp_path):
    with quick(tmp_path) as lock:
        lock.check()
        write_lock(tmp_path)
        lock._thread.join(10)
        with pytest.raises(InputError, match="taken over by another run"):
            lock.check()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "theirs"


def test_heartbeats_change_the_file(tmp_path):
    with quick(tmp_path):
        path = tmp_path / LOCK_FILE
        os.utime(path, (0, 0))
        assert any(path.stat().st_mtime > 1 or threading.Event().wait(0.05) for _ in range(200))


def test_processes_of_one_run_share_the_lock(tmp_path, monkeypatch):
    """The first one holds it. If it is refused, the others are too."""
    answers = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(run_lock.multihost_utils, "broadcast_one_to_all", lambda own: answers.pop())
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    answers.append(0)
    with quick(tmp_path):
        assert list(tmp_path.iterdir()) == []
    answers.append(1)
    with pytest.raises(InputError, match="cannot be locked by the first process"):
        quick(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot lock .*nowhere"):
        quick(tmp_path / "nowhere").__enter__()
