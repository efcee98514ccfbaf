"""What the files of an item of FFHQ-FastComposer hold. None of them is trusted."""

import io
import json
import struct
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fd_jax.errors import InputError

# Padded to a square, a larger or longer image would fill the memory.
MIN_SIDE, MAX_SIDE, MAX_ASPECT = 2, 16384, 10

# What Pillow and numpy raise on damaged files, apart from their own errors.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, RuntimeError)
_DAMAGE += (OverflowError, MemoryError, struct.error, Image.DecompressionBombError)


class DataError(InputError):
    """A dataset, or an item of it, that cannot be used as it is."""


class Segment(NamedTuple):
    """A thing in a photograph that the caption names."""

    id: int  # its value in the segment map
    bbox: tuple[int, int, int, int]  # x1, y1, x2, y2; the last two exclusive
    start: int  # of its noun phrase in the caption, in characters
    end: int
    coco_label: str
    face: tuple[int, int, int, int] | None = None  # x1, y1, x2, y2, maybe beyond the image


def read_info(content: bytes, name: str) -> tuple[str, tuple[Segment, ...]]:
    """Returns caption and segments of an item's JSON file.

    Raises:
        DataError: It is damaged, or a value is missing or of another type.
    """
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"item {name}: its JSON file is damaged: {error}") from error
    if not isinstance(info, dict) or not _is_text(info.get("caption")):
        raise DataError(f"item {name}: its JSON file has no caption, expected a string")
    if not isinstance(info.get("segments"), list):
        raise DataError(f"item {name}: its JSON file has no segments, expected a list")
    return info["caption"], tuple(_segment(entry, name) for entry in info["segments"])


def _segment(entry: Any, name: str) -> Segment:
    if not isinstance(entry, dict):
        raise DataError(f"item {name}: a segment is {entry!r:.80}, expected an object")

    def value(key: str, is_right: bool, expected: str) -> Any:
        if not is_right:
            raise DataError(
                f"item {name}: {key} of a segment is {entry.get(key)!r:.80}, expected {expected}"
            )
        return entry[key]

    def is_box(box: Any) -> bool:
        return isinstance(box, list) and len(box) == 4 and all(type(x) is int for x in box)

    bbox, label, face = entry.get("bbox"), entry.get("coco_label"), entry.get("face")
    numbers = {
        key: value(key, type(entry.get(key)) is int, "a whole number")
        for key in ("id", "start", "end")
    }
    if face is not None:
        is_face = is_box(face) and face[0] < face[2] and face[1] < face[3]
        face = tuple(value("face", is_face, "four whole numbers x1 < x2, y1 < y2"))
    return Segment(
        bbox=tuple(value("bbox", is_box(bbox), "four whole numbers x1, y1, x2, y2")),
        coco_label=value("coco_label", _is_text(label), "a string"),
        face=face,
        **numbers,
    )


def _is_text(value: Any) -> bool:
    """Whether it is a string, and of whole characters: JSON can write half ones."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def decode_image(content: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of a JPEG or PNG, whole, not turned: its map is as the file is.

    Raises:
        DataError: It is damaged, cut short, or of an extreme size.
    """
    try:
        # The formats that a dataset may have, not all that Pillow guesses at.
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            short, long = sorted(image.size)
            if short >= MIN_SIDE and long <= min(MAX_SIDE, MAX_ASPECT * short):
                # `convert` copies even what is RGB already.
                return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
            size = image.size
    except _DAMAGE as error:
        raise DataError(f"item {name}: its image cannot be read: {error}") from error
    raise DataError(
        f"item {name}: its image is {size[0]} x {size[1]} pixels, expected sides of {MIN_SIDE} to "
        f"{MAX_SIDE}, one at most {MAX_ASPECT} times the other"
    )


def decode_map(content: bytes, name: str, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Returns a segment map of this size, from npy or PNG.

    Raises:
        DataError: It is damaged, of another size, or not of whole bytes.
    """
    try:
        if content.startswith(b"\x89PNG"):
            with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
                if image.size == (width, height) and image.mode == "L":
                    return np.asarray(image)
                found = f"{image.mode} of shape {image.size[::-1]}"
        else:
            segment_map, found = _read_npy(content, height, width)
            if segment_map is not None:
                return segment_map
    except _DAMAGE as error:
        raise DataError(f"item {name}: its segment map cannot be read: {error}") from error
    raise DataError(
        f"item {name}: its segment map is {found}, expected uint8 of shape {(height, width)}"
    )


def _read_npy(content: bytes, height: int, width: int) -> tuple[np.ndarray | None, str]:
    """The array if it is as expected, and what it is. Nothing is unpickled or believed."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of npy, expected 1.0 or 2.0")
    major = version[0]
    read = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read[major - 1](stream)
    if dtype != np.uint8 or shape != (height, width):
        return None, f"{dtype} of shape {shape}"
    flat = np.frombuffer(content, np.uint8, offset=stream.tell())
    if len(flat) != height * width:
        raise ValueError(f"{len(flat)} bytes of pixels, expected {height * width}")
    return flat.reshape(shape, order="F" if is_fortran else "C"), ""
