"""Photographs of subjects, decoded and resized to the input of the image encoder."""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import ExifTags, Image

from fd_jax.errors import InputError
from fd_jax.files import names_in, to_path
from fd_jax.images.opening import (
    FORMAT_NAMES,
    SupportsRead,
    UnknownFormatError,
    is_listed,
    open_image,
    quiet,
)


@runtime_checkable
class SupportsArray(Protocol):
    """An array that NumPy can read, such as JAX's."""

    def __array__(self, *args: Any, **options: Any) -> np.ndarray: ...


FileBytes = bytes | bytearray | memoryview
# A path, a PIL image, an array that NumPy reads, the bytes of an image file, or an open file.
Photograph = str | os.PathLike | Image.Image | np.ndarray | FileBytes | SupportsArray | SupportsRead

MAX_PIXELS = 178_956_970  # Pillow's own limit
MIN_SIDE = 2
MAX_SUBJECT_RESOLUTION = 4096  # side of the square that photographs are resized to
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jp2"),
)
MAX_ASPECT = 100  # a longer image resized to 224 keeps two columns or fewer

# Exceptions that Pillow raises on damaged files, besides its own; they differ by format.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, RuntimeError)
_DAMAGE += (OverflowError, struct.error)

_UPRIGHT = {  # EXIF orientation -> transpose that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotographError(InputError):
    """A photograph that cannot be read or used."""


def is_photograph(value: object) -> bool:
    """Whether a value is meant as one photograph, and not as a list of them."""
    return isinstance(value, Photograph)


def photographs_in(path: str | os.PathLike) -> list[Path]:
    """Returns the image files of a folder in the order of their names; a file as it is.

    Raises:
        InputError: The folder holds no image file, or cannot be read.
    """
    path = to_path(path)
    try:
        if not path.is_dir():
            return [path]
        names = sorted(names_in(path))
    except OSError as error:
        raise PhotographError(f"folder {path} cannot be read: {error.strerror}") from error
    files = [path / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise PhotographError(
            f"folder {path} holds no image file, expected names that end in one of "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    return files


def split_names(text: str) -> list[Path]:
    """Returns the paths in a list with commas. A name that holds commas counts if it exists.

    Raises:
        PhotographError: There is nothing between two commas.
    """
    pieces, paths = text.split(","), []
    while pieces:
        ends = range(len(pieces), 1, -1)
        names = (",".join(pieces[:end]) for end in ends)
        end = next((e for e, name in zip(ends, names, strict=True) if os.path.exists(name)), 1)
        name = ",".join(pieces[:end])
        if not name:
            raise PhotographError(f"{text!r} has an empty name, expected paths with commas between")
        paths.append(to_path(name))
        pieces = pieces[end:]
    return paths


def load_photograph(source: Photograph) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes a photograph to upright RGB, in a new array.

    Transparent pixels become black. An animation gives its first frame, an open PIL image its
    current one. Colour profiles are not applied.

    Args:
        source: Path of an image file, its bytes, or an open binary file, which is read to its end;
            a PIL image; or an array of uint8 or of floats in [0, 1], shaped (h, w) or (h, w, c)
            with 1, 3 or 4 channels.

    Raises:
        PhotographError: The file is missing, damaged, truncated, or of another format than
            `fd_jax.images.opening.FORMATS`; the image is too large or too small; or its mode,
            dtype, shape or range is not supported.
    """
    if isinstance(source, FileBytes):
        return _decode(io.BytesIO(source), f"photograph of {len(source)} bytes")
    if isinstance(source, SupportsRead):
        name = f"photograph {getattr(source, 'name', '') or repr(source)}"
        return _decode(io.BytesIO(_content(source, name)), name)
    if isinstance(source, SupportsArray) and not isinstance(source, np.ndarray | Image.Image):
        source = np.asarray(source)
    if isinstance(source, np.ndarray):
        return _rgb(_image_of_array(source), "photograph array")
    if isinstance(source, Image.Image):
        name = f"photograph {getattr(source, 'filename', '') or repr(source)}"
        if not is_listed(source):  # its pixels may not be decoded yet
            raise PhotographError(
                f"{name} was opened as {source.format}, expected {FORMAT_NAMES}, or a copy in "
                "memory (image.copy())"
            )
        return _rgb(source, name)
    if not isinstance(source, str | os.PathLike):
        raise PhotographError(
            f"photograph is a {type(source).__name__}, expected a path, the bytes of a file, a "
            "PIL image or an array"
        )

    source = to_path(source)
    name = f"photograph {source}"
    if os.path.isdir(source):
        raise PhotographError(f"{name} is a folder, expected an image file")
    if os.path.isfile(source) and os.path.getsize(source) == 0:
        raise PhotographError(f"{name} is empty")
    return _decode(source, name)


def _content(source: SupportsRead, name: str) -> bytes:
    """Reads a file object to its end, and goes back to where it was if it can."""
    file: Any = source
    try:
        can_seek = hasattr(source, "tell") and hasattr(source, "seek")
        position = file.tell() if can_seek else None
    except (OSError, ValueError):
        position = None
    try:
        content = source.read()
        if position is not None:
            file.seek(position)
    except (OSError, ValueError) as error:
        raise PhotographError(f"{name} cannot be read: {error}") from error
    if not isinstance(content, bytes | bytearray):
        raise PhotographError(
            f"{name} gives {type(content).__name__}, expected bytes: open it in binary mode ('rb')"
        )
    if not content:
        raise PhotographError(f"{name} is empty")
    return bytes(content)


def _decode(source: str | os.PathLike | io.BytesIO, name: str) -> UInt8[np.ndarray, "h w 3"]:
    with _errors_named(name):
        image = open_image(source)
    with image:
        return _rgb(image, name)


def subject_pixels(
    photograph: UInt8[np.ndarray, "h w 3"], resolution: int
) -> Float32[np.ndarray, "r r 3"]:
    """Pads a photograph with black to a square and resizes it; the result is in [0, 1].

    The interpolation is bilinear with antialiasing, rounded to 256 levels as torchvision does for
    8-bit images: every level equals the released code's, on any machine.
    """
    height, width, _ = photograph.shape
    # An odd difference leaves the square one pixel short, which the resize makes up for.
    padding = abs(height - width) // 2
    top, left = (0, padding) if height > width else (padding, 0)
    columns = _pad_and_resize(photograph.swapaxes(0, 1), left, resolution)
    square = _pad_and_resize(columns.swapaxes(0, 1), top, resolution)
    return np.round(square) / np.float32(255)


def _pad_and_resize(
    pixels: Shaped[np.ndarray, "n m 3"], padding: int, resolution: int
) -> Float32[np.ndarray, "r m 3"]:
    """Pads the first axis with black at both ends and resizes it."""
    # The float32 numbers and the order of the sums are PyTorch's. Exact weights would change one
    # value in a few thousand by a level.
    length = len(pixels)
    size = length + 2 * padding
    scale = np.float32(size) / np.float32(resolution)
    reach = max(scale, np.float32(1))
    centres = scale * (np.arange(resolution, dtype=np.float32) + np.float32(0.5))
    first = np.maximum((centres - reach + np.float32(0.5)).astype(int), 0)
    count = int(2 * reach) + 2

    def triangle(taps):
        distances = taps.astype(np.float32) - centres[:, None] + np.float32(0.5)
        return np.maximum(1 - np.abs(distances * (1 / reach)), 0)

    taps = first[:, None] + np.arange(count)
    total = np.cumsum(np.where(taps < size, triangle(taps), 0), axis=1)[:, -1:]
    # The padding is never allocated: a long thin image squared could fill the memory.
    taps = np.maximum(first, padding)[:, None] + np.arange(min(count, length))
    weights = np.where(taps < padding + length, triangle(taps) / total, 0)
    taps = np.minimum(taps - padding, length - 1)

    resized = np.zeros((resolution, *pixels.shape[1:]), np.float32)
    for tap, weight in zip(taps.T, weights.T.astype(np.float64), strict=True):
        # PyTorch's multiply-add is fused: the product is exact in float64 and rounded once.
        resized = (resized + pixels[tap] * weight[:, None, None]).astype(np.float32)
    return resized


def _image_of_array(array: np.ndarray) -> Image.Image:
    described = f"photograph array of shape {array.shape} and dtype {array.dtype}"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise PhotographError(f"{described}: expected (h, w) or (h, w, c) with 1, 3 or 4 channels")
    _check_size(described, width=array.shape[1], height=array.shape[0])
    if np.issubdtype(array.dtype, np.floating):
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 1):  # refuses NaN too
            raise PhotographError(f"{described} spans {low} to {high}, expected floats in [0, 1]")
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PhotographError(f"{described}: expected uint8, or floats in [0, 1]")
    return Image.fromarray(array[..., 0] if array.ndim == 3 and channels == 1 else array)


def _check_size(name: str, *, width: int, height: int) -> None:
    size = f"{name} is {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise PhotographError(f"{size}, {width * height} in all, expected {MAX_PIXELS} at most")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise PhotographError(
            f"{size}, expected sides of at least {MIN_SIDE}, one at most {MAX_ASPECT} times the "
            "other"
        )


@contextlib.contextmanager
def _errors_named(name: str) -> Iterator[None]:
    """Translates what Pillow raises on unreadable files into errors that name the file."""
    try:
        with quiet():
            yield
    except FileNotFoundError as error:
        raise PhotographError(f"{name} does not exist") from error
    except UnknownFormatError as error:
        raise PhotographError(f"{name} {error}") from error
    except Image.DecompressionBombError as error:
        raise PhotographError(f"{name} is too large: {error}") from error
    except _DAMAGE as error:
        raise PhotographError(f"{name} cannot be read: {error}") from error


def _rgb(image: Image.Image, name: str) -> UInt8[np.ndarray, "h w 3"]:
    _check_size(name, width=image.width, height=image.height)  # before anything is decoded
    with _errors_named(name):
        image.load()
    _check_size(name, width=image.width, height=image.height)  # some formats know it only now
    upright = _upright(image)

    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bit(image, name)
    try:
        if image.has_transparency_data:
            # Black like the padding. Dropping alpha, as the released code does, would uncover
            # what a cut-out hides, often the whole background.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        image = image.convert("RGB")
    except ValueError as error:
        raise PhotographError(f"{name} has the unsupported mode {image.mode}") from error
    return np.array(image if upright is None else image.transpose(upright))


def _upright(image: Image.Image) -> Image.Transpose | None:
    """Returns the transpose that undoes the EXIF orientation, or None."""
    # The released code ignores it, and faces may lie on their side.
    with quiet(), contextlib.suppress(*_DAMAGE):
        return _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _eight_bit(image: Image.Image, name: str) -> Image.Image:
    """Scales 16-bit, 32-bit and float greys to 8 bits; Pillow would clip them at 255."""
    grey = np.asarray(image).astype(np.float32)
    low, high = grey.min(), grey.max()
    if not (low >= 0 and high <= 65535):  # refuses NaN too
        raise PhotographError(
            f"{name} of mode {image.mode} spans {low} to {high}, expected 0 to 65535"
        )
    # Modes I and F do not define white; files and Pillow's conversions use these values.
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    white = next(white for white in whites if high <= white)
    return Image.fromarray(np.round(grey * (255 / white)).astype(np.uint8))
