"""Lock of a run's folder: one run at a time trains in it, from any host."""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fd_jax.buckets import BucketPath
from fd_jax.errors import InputError, OutputError
from fd_jax.files import atomic_file

LOCK_FILE = "lock.json"

_HEARTBEAT = 10.0  # seconds between two heartbeats of the holder
_PATIENCE = 35.0  # seconds without a heartbeat after which a holder elsewhere counts as dead


class RunLock:
    """Context manager that holds the lock of a run's folder.

    The file names the process that holds it, which updates its modification time as a heartbeat. A
    holder that died is recognized: on the same host by its process id and start time at once, on
    another host, or in another container, by a heartbeat that stops. Only the file's own changes
    are watched, so clocks may differ between hosts. Of several processes the first holds the lock
    for all of them. In a bucket a heartbeat writes the object anew, and every change asks for the
    generation that was seen, so that of two runs one alone succeeds.

    Args:
        workdir: Folder of the run, which exists.
        heartbeat: Seconds between two heartbeats.
        patience: Seconds without a heartbeat after which a holder elsewhere counts as dead.

    Raises:
        InputError: Another run holds the lock.
        OutputError: The file cannot be written.
    """

    def __init__(
        self, workdir: Path, *, heartbeat: float = _HEARTBEAT, patience: float = _PATIENCE
    ):
        self._path = workdir / LOCK_FILE
        self._heartbeat = heartbeat
        self._patience = patience
        self._token = secrets.token_hex(8)
        self._is_held = False
        self._is_lost = False
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "RunLock":
        error: InputError | None = None
        if jax.process_index() == 0:
            try:
                self._acquire()
            except InputError as refused:
                error = refused
        if jax.process_count() > 1:
            # All processes end alike: the others would wait for a first one that has ended.
            refused = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
            if refused and error is None:
                error = InputError(f"{self._path.parent} cannot be locked by the first process")
        if error is not None:
            raise error
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()
        if self._is_held:
            with contextlib.suppress(OSError):
                self._unlink_of(self._token)
        self._is_held = False

    def check(self) -> None:
        """Raises InputError if another run took the lock, as this process gave no sign of life."""
        if self._is_lost:
            raise InputError(
                f"{self._path.parent} was taken over by another run while this process was "
                "suspended: nothing more is written by this one"
            )

    def _acquire(self) -> None:
        content = {**_this_process(), "token": self._token}
        try:
            while not self._create(content):
                holder = _read(self._path)
                if holder is not None and holder.get("token") == self._token:
                    break  # created in a bucket, but the answer was lost
                if holder is not None:
                    self._refuse_if_alive(holder)
                    self._remove(holder)
        except OSError as error:
            raise OutputError(f"cannot lock {self._path.parent}: {error}") from error
        self._is_held = True
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._thread.start()

    def _create(self, content: dict[str, Any]) -> bool:
        """Creates the file; returns whether it did not exist."""
        try:
            with atomic_file(self._path, overwrite=False) as temporary:
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        except FileExistsError:
            return False
        return True

    def _refuse_if_alive(self, holder: dict[str, Any]) -> None:
        here = _this_process()
        if all(holder.get(name) == here[name] for name in ("host", "boot", "namespace")):
            started = _start_time(holder.get("pid"))
            is_alive = started is not None and started == holder.get("started")
        else:
            is_alive = self._hears_heartbeat()
        if is_alive:
            pid, host = holder.get("pid", "unknown"), holder.get("host", "an unknown host")
            raise InputError(
                f"{self._path.parent} is in use: process {pid} on {host} trains in it; expected "
                "another --workdir, or that run to end"
            )

    def _hears_heartbeat(self) -> bool:
        """Watches the file of a holder elsewhere; returns whether it changes or disappears."""
        first = _fingerprint(self._path)
        end = time.monotonic() + self._patience
        while time.monotonic() < end:
            time.sleep(min(1.0, self._patience / 10))
            if _fingerprint(self._path) != first:
                return True
        return False

    def _remove(self, dead: dict[str, Any]) -> None:
        """Removes the file of a holder that died, unless another process is about to.

        Raises:
            InputError: Another process is about to take the lock.
        """
        if isinstance(self._path, BucketPath):
            self._unlink_of(dead.get("token"))
            return
        # One process alone may remove the file of a given holder: the one that creates this one.
        # Otherwise the second might remove the new file of the first.
        claim = self._path.with_name(f".{dead.get('token', 'unknown')}.{LOCK_FILE}")
        try:
            claim.open("x").close()
        except FileExistsError:
            if _age(claim) < self._patience:
                raise InputError(
                    f"{self._path.parent} is in use: another run is starting in it; expected "
                    "another --workdir"
                ) from None
        try:
            self._unlink_of(dead.get("token"))
        finally:
            claim.unlink(missing_ok=True)

    def _unlink_of(self, token: Any) -> None:
        """Deletes the file if it is that of a holder."""
        generation = _generation(self._path)
        current = _read(self._path)
        if current is None or current.get("token") != token:
            return
        if isinstance(self._path, BucketPath):
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # another's by now
                self._path.unlink_generation(generation)
        else:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._is_closed.wait(self._heartbeat):
            with contextlib.suppress(OSError):  # a disk that fails for a while
                generation = _generation(self._path)
                holder = _read(self._path)
                if holder is None or holder.get("token") != self._token:
                    self._is_lost = True
                    return
                if isinstance(self._path, BucketPath):
                    self._path.replace_generation(json.dumps(holder).encode(), generation)
                else:
                    os.utime(self._path)


def _this_process() -> dict[str, Any]:
    """Returns what identifies this process: its id and start time, and where these are unique."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _first_line(Path("/proc/sys/kernel/random/boot_id")),
        "namespace": _namespace(),
        "pid": pid,
        "started": _start_time(pid),
    }


def _namespace() -> str | None:
    """Returns the namespace of process ids, of which every container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _start_time(pid: Any) -> str | None:
    """Returns when a process of this host started, in any unit; None if there is none."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    if Path("/proc/self/stat").exists():
        # The second field is the name in brackets, which may hold brackets and spaces.
        fields = (_first_line(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
        is_running = len(fields) > 19 and fields[0] not in "ZX"  # no zombie
        return fields[19] if is_running else None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"  # without /proc any process of this id counts


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[0]
    except OSError:
        return None


def _read(path: Path) -> dict[str, Any] | None:
    """Returns the content of a lock, empty if it is damaged; None if there is no lock."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _generation(path: Path) -> int:
    """Returns the generation of an object in a bucket; files on disk have none."""
    return path.generation() if isinstance(path, BucketPath) else 0


def _fingerprint(path: Path) -> tuple[int, bytes] | None:
    """Returns modification time and content; None if there is no file."""
    try:
        if isinstance(path, BucketPath):
            return path.generation(), path.read_bytes()
        # Opened, because network file systems cache the times of files that are not.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
