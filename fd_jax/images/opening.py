"""Opens image files, with an explicit list of decoders."""

import contextlib
import functools
import importlib
import io
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from fd_jax.buckets import BucketPath

# Pillow has fifty decoders more. One starts Ghostscript; a file's name does not decide which runs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "HEIF")
FORMAT_NAMES = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000 or HEIC"

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


@runtime_checkable
class SupportsRead(Protocol):
    """A binary file, or anything else that bytes can be read from."""

    def read(self, size: int = -1, /) -> bytes: ...


class UnknownFormatError(OSError):
    """An image file in a format that no listed decoder reads."""


def open_image(
    source: str | os.PathLike | SupportsRead, formats: Sequence[str] = FORMATS
) -> Image.Image:
    """Opens an image, as `PIL.Image.open` does, with none but the listed decoders.

    Pixels are decoded when they are first used.

    Args:
        source: Path or binary file, positioned at its start.
        formats: Names of decoders, some of `FORMATS`. HEIF needs the package pillow-heif.

    Raises:
        UnknownFormatError: The file is of another format, or of a format that is not installed.
        OSError: The file cannot be read.
    """
    if not set(formats) <= set(FORMATS):
        raise ValueError(f"formats are {tuple(formats)}, expected some of {FORMATS}")
    if "HEIF" in formats:
        _register_heif()
    if not set(formats) <= set(Image.OPEN):
        Image.init()
    if isinstance(source, BucketPath):
        source = io.BytesIO(source.read_bytes())
    try:
        file: Any = source
        return Image.open(file, formats=[name for name in formats if name in Image.OPEN])
    except Image.UnidentifiedImageError as error:
        raise UnknownFormatError(_explain(source, formats)) from error


def is_listed(image: Image.Image) -> bool:
    """Whether an image was made in memory, or opened with a listed decoder."""
    # MPO is a JPEG file of several pictures, opened by the decoder of JPEG.
    return image.format is None or image.format in (*FORMATS, "MPO")


class _Quiet:
    """Counts the threads that ignore warnings; the last one restores the filters.

    `warnings.catch_warnings` alone would save the filters of another thread that ignores warnings,
    and leave them behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._count == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.simplefilter("ignore")
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._caught.__exit__(None, None, None)


_QUIET = _Quiet()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignores Pillow's warnings: of large images, and of metadata that no pixel depends on."""
    with _QUIET:
        yield


@functools.cache  # looking for a package that is not installed takes 10 ms
def _register_heif() -> None:
    try:
        pillow_heif = importlib.import_module("pillow_heif")
    except ImportError:
        return
    pillow_heif.register_heif_opener()


def _explain(source: str | os.PathLike | SupportsRead, formats: Sequence[str]) -> str:
    """Names the format of a file that was refused, as far as its first bytes tell it."""
    head = _head(source)
    if head.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")):
        found = "is PostScript (EPS)"
    elif head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and "HEIF" in formats:
        return "is HEIC, which needs the package pillow-heif: pip install pillow-heif"
    elif head.startswith(b"%PDF"):
        found = "is a PDF"
    elif head.lstrip()[:5].lower().startswith((b"<?xml", b"<svg")):
        found = "is SVG or XML"
    else:
        found = "is no image of a known format"
    names = FORMAT_NAMES if tuple(formats) == FORMATS else " or ".join(formats)
    return f"{found}, expected {names}"


def _head(source: str | os.PathLike | SupportsRead) -> bytes:
    if isinstance(source, str | os.PathLike):
        if not os.path.isfile(source):  # a pipe would wait for ever
            return b""
        with open(source, "rb") as file:
            return file.read(64)
    file: Any = source
    if not hasattr(file, "seek"):
        return b""
    file.seek(0)
    return file.read(64)
