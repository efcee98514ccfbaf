"""Paths in buckets of Google Cloud Storage, which act as those on disk do.

An object is written whole or not at all, and folders are prefixes of names. Nothing here relies on
renaming. The package gcsfs does the work; its environment variables name credentials and server
(GOOGLE_APPLICATION_CREDENTIALS, STORAGE_EMULATOR_HOST).
"""

import contextlib
import errno
import functools
import hashlib
import importlib.util
import io
import logging
import os
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PosixPath
from typing import Any

from fd_jax.errors import InputError

SCHEME = "gs:"
_UPLOAD_EVERY = 60.0  # seconds between two uploads of a text that grows
_PATIENCE = 300.0  # seconds of retries while a server is not available


class BucketPath(PosixPath):
    """An object or a folder, `gs://bucket/name`.

    The methods that read and write work as those of `Path`, except that a file is opened for
    reading alone, and read whole. A path from anywhere else becomes one by `to_path`.
    """

    def __str__(self) -> str:
        return f"gs://{self._key}"

    def __fspath__(self) -> str:
        return str(self)

    def as_posix(self) -> str:
        return str(self)

    @property
    def bucket(self) -> str:
        return self.parts[1]

    @property
    def key(self) -> str:
        """Name of the object in its bucket."""
        return "/".join(self.parts[2:])

    @property
    def _key(self) -> str:
        return "/".join(self.parts[1:])

    def absolute(self) -> "BucketPath":
        return self

    def exists(self, **_: Any) -> bool:
        return self._kind() is not None

    def is_file(self, **_: Any) -> bool:
        return self._kind() == "file"

    def is_dir(self, **_: Any) -> bool:
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return self._call("info")["type"]
        except FileNotFoundError:
            return None

    def iterdir(self) -> Iterator["BucketPath"]:
        names = {entry["name"].rstrip("/") for entry in self._call("ls", detail=True)}
        yield from (self / name.rpartition("/")[2] for name in sorted(names - {self._key}))

    def files(self) -> dict[str, str]:
        """Returns the generation of each object below this folder, by its name from here."""
        found = self._call("find", detail=True)
        start = len(self._key) + 1
        return {name[start:]: str(entry["generation"]) for name, entry in sorted(found.items())}

    def open(self, mode: str = "r", *_: Any, encoding: str | None = None, **__: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"{self}: mode is {mode!r}, expected to read, or `atomic_file`")
        content = io.BytesIO(self.read_bytes())
        return content if mode == "rb" else io.TextIOWrapper(content, encoding=encoding)

    def read_bytes(self) -> bytes:
        return self._call("cat_file")

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        self._write("pipe_file", bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *_: Any, **__: Any) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8"))

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        self._write("pipe_file", b"", mode="overwrite" if exist_ok else "create")

    def upload(self, source: Path, *, overwrite: bool = True) -> None:
        """Writes a file of this machine. Raises FileExistsError unless it may be replaced."""
        mode = "overwrite" if overwrite else "create"
        self._write(lambda fs, key: fs.put_file(str(source), key, mode=mode))

    def upload_folder(self, source: Path) -> None:
        """Writes the files below a folder of this machine."""
        for path in sorted(source.rglob("*")):
            if path.is_file():
                (self / path.relative_to(source)).upload(path)

    def download(self, target: Path) -> None:
        """Copies the object to a file of this machine, which appears when it is whole."""
        from fsspec.callbacks import TqdmCallback

        bar = {"desc": f"reading {self.name}", "unit": "B", "unit_scale": True, "delay": 2.0}
        temporary = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with TqdmCallback(tqdm_kwargs=bar) as callback:
                self._call("get_file", str(temporary), callback=callback)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Does nothing: a folder is there when it holds something."""

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])):
            self._call("rm_file")

    def rmtree(self) -> None:
        """Deletes the objects of a folder, if there are any."""
        for name in self.files():
            (self / name).unlink(missing_ok=True)

    def rename(self, target: Any) -> Any:
        """Copies one object after the other, and deletes each once it is copied."""
        for name in [""] if self.is_file() else self.files():
            source, copy = (self / name, target / name) if name else (self, target)
            source._call("cp_file", copy._key)
            source.unlink(missing_ok=True)
        return target

    def generation(self) -> int:
        """Returns the number of the object's version, which grows; 0 if there is no object."""
        try:
            return int(self._call("info").get("generation", 0))
        except FileNotFoundError:
            return 0

    def replace_generation(self, data: bytes, generation: int) -> int:
        """Writes the object if it has this generation (0: is absent); returns the new generation.

        Raises:
            FileExistsError: It has another.
        """
        options = {"uploadType": "media", "name": self.key, "ifGenerationMatch": generation}
        found = self._write(
            lambda fs, _: fs.call(
                "POST",
                f"{fs._location}/upload/storage/v1/b/{self.bucket}/o",
                data=data,
                json_out=True,
                **options,
            )
        )
        return int(found["generation"])

    def unlink_generation(self, generation: int) -> None:
        """Deletes the object if it has this generation.

        Raises:
            FileExistsError: It has another.
        """
        self._call(
            lambda fs, _: fs.call(
                "DELETE", "b/{}/o/{}", self.bucket, self.key, ifGenerationMatch=generation
            )
        )

    def _call(self, method: str | Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Calls a method of gcsfs with this path, again while the server is not available.

        Raises:
            OSError: The server refuses, or stays away.
        """
        if len(self.parts) < 2:
            raise FileNotFoundError(errno.ENOENT, "expected gs://bucket/name", str(self))
        fs = _file_system()
        call = functools.partial(method, fs) if callable(method) else getattr(fs, method)
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return call(self._key, *args, **options)
            except FileExistsError as error:
                raise FileExistsError(errno.EEXIST, "exists already", str(self)) from error
            except FileNotFoundError as error:
                raise FileNotFoundError(errno.ENOENT, "does not exist", str(self)) from error
            except Exception as error:  # those of gcsfs, aiohttp and Google's have no common type
                from gcsfs.retry import is_retriable  # pyright: ignore[reportMissingImports]

                text = " ".join(str(error).split())
                if text.startswith("Forbidden"):
                    reason = "no permission for this object or bucket, with the credentials found"
                    raise PermissionError(errno.EACCES, f"{reason} ({text})", str(self)) from error
                if not is_retriable(error) or time.monotonic() > end:
                    text = f"{type(error).__name__}: {text}"
                    raise OSError(errno.EIO, text, str(self)) from error
                warnings.warn(f"{self}: tried again after {text[:200]}", stacklevel=2)

    def _write(self, method: str | Callable[..., Any], *args: Any, **options: Any) -> Any:
        try:
            return self._call(method, *args, **options)
        except FileNotFoundError as error:
            reason = f"the bucket {self.parts[1]} does not exist"
            raise FileNotFoundError(errno.ENOENT, reason, str(self)) from error


def as_bucket(path: Path) -> Path:
    """Returns a `BucketPath` for a path that starts with `gs:`, and any other as it is.

    Raises:
        InputError: gcsfs is not installed.
    """
    if isinstance(path, BucketPath) or path.parts[:1] != (SCHEME,):
        return path
    found = BucketPath(path)
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(
            f"{found} is in a bucket, which needs the package gcsfs: pip install 'fd_jax[gcs]'"
        )
    return found


def fetch(path: BucketPath, names: Collection[str] | None = None) -> Path:
    """Downloads an object, or objects of a folder, unless the copies are there; returns their path.

    Copies are kept in the user's cache folder by generation, so that what is replaced in the bucket
    is downloaded again.

    Args:
        path: The object or folder.
        names: Names of a folder's objects from there, by default all.

    Raises:
        OSError: There is nothing, or it cannot be read or stored.
    """
    is_file = path.is_file()
    generations = {path.name: str(path.generation())} if is_file else path.files()
    if not generations:
        raise FileNotFoundError(errno.ENOENT, "does not exist", str(path))
    version = hashlib.sha256(repr(sorted(generations.items())).encode()).hexdigest()[:16]
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(caches, "fd_jax", "buckets", *path.parts[1:], version)
    for name in generations if names is None else names:
        copy = folder / name
        if copy.exists():
            continue
        if ".." in copy.parts or name.startswith("/"):
            raise ValueError(f"{path} holds {name!r}, expected no such name")
        copy.parent.mkdir(parents=True, exist_ok=True)
        (path if is_file else path / name).download(copy)
    return folder / path.name if is_file else folder


class GrowingObject:
    """Text in a bucket that is written line by line, and uploaded whole once a minute.

    Objects cannot be appended to.

    Args:
        path: The object. Text that it holds is kept.
    """

    def __init__(self, path: BucketPath):
        self._path = path
        self._text = path.read_text() if path.exists() else ""
        self._uploaded = time.monotonic()

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() > self._uploaded + _UPLOAD_EVERY:
            self.upload()

    def upload(self) -> None:
        self._path.write_text(self._text)
        self._uploaded = time.monotonic()

    close = upload


@functools.cache
def _file_system() -> Any:
    """Returns the client. Listings are not kept, as other processes write too."""
    import fsspec.config
    import gcsfs  # pyright: ignore[reportMissingImports]  # optional

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs is raised too
    # Orbax makes clients of its own, which take this from here.
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    return gcsfs.GCSFileSystem()
