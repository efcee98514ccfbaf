"""Records of FFHQ-FastComposer: their files are decoded and checked, none is trusted."""

import io
import json
import struct
import tokenize
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fd_jax.errors import InputError
from fd_jax.images.opening import open_image

# Padded to a square, a larger or longer image would fill the memory.
MIN_SIDE, MAX_SIDE, MAX_ASPECT = 2, 16384, 10

# Exceptions that Pillow and NumPy raise on damaged files, besides their own.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, RuntimeError)
_DAMAGE += (OverflowError, MemoryError, struct.error, Image.DecompressionBombError)
_DAMAGE += (tokenize.TokenError,)  # of headers of npy


class DataError(InputError):
    """A dataset, or an item of it, that cannot be used as it is."""


class Segment(NamedTuple):
    """An object in a photograph that the caption names."""

    id: int  # value of its pixels in the segment map
    bbox: tuple[int, int, int, int]  # x1, y1, x2, y2; the last two exclusive
    start: int  # first character of its noun phrase in the caption
    end: int  # end of the noun phrase, exclusive
    coco_label: str
    face: tuple[int, int, int, int] | None = None  # x1, y1, x2, y2, maybe beyond the image


class Record(NamedTuple):
    """An item of a dataset as it is stored, not decoded."""

    index: int  # its position in the source
    id: str
    image: bytes  # JPEG
    segment_map: bytes  # npy or PNG
    caption: str
    segments: tuple[Segment, ...]


def check_box(segment: Segment, record: Record, height: int, width: int) -> None:
    """Raises DataError if a segment's id or bbox is impossible in an image of this size."""
    if not 1 <= segment.id <= 255:
        raise DataError(f"item {record.id}: a segment has the id {segment.id}, expected 1..255")
    x1, y1, x2, y2 = segment.bbox
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise DataError(
            f"item {record.id}: bbox of segment {segment.id} is {list(segment.bbox)}, expected "
            f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
        )


def check_words(segment: Segment, record: Record) -> None:
    """Raises DataError if a segment's noun phrase lies outside of the caption."""
    if not 0 <= segment.start < segment.end <= len(record.caption):
        raise DataError(
            f"item {record.id}: segment {segment.id} is named by characters {segment.start} to "
            f"{segment.end} of the caption, expected 0 <= start < end <= {len(record.caption)}"
        )


def read_info(content: bytes, name: str) -> tuple[str, tuple[Segment, ...]]:
    """Parses an item's JSON file into its caption and segments.

    The key `start` may be missing, as the released loaders do not read it. The noun phrase is then
    the last word before `end`.

    Raises:
        DataError: The file is damaged, or a value is missing or of another type.
    """
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"item {name}: its JSON file is damaged: {error}") from error
    if not isinstance(info, dict) or not _is_text(info.get("caption")):
        raise DataError(f"item {name}: its JSON file has no caption, expected a string")
    if not isinstance(info.get("segments"), list):
        raise DataError(f"item {name}: its JSON file has no segments, expected a list")
    return info["caption"], tuple(
        _segment(entry, info["caption"], name) for entry in info["segments"]
    )


def _segment(entry: Any, caption: str, name: str) -> Segment:
    if not isinstance(entry, dict):
        raise DataError(f"item {name}: a segment is {entry!r:.80}, expected an object")

    def require(key: str, is_right: bool, expected: str) -> Any:
        if not is_right:
            raise DataError(
                f"item {name}: {key} of a segment is {entry.get(key)!r:.80}, expected {expected}"
            )
        return entry[key]

    def integer(key: str) -> int:
        return require(key, _is_int32(entry.get(key)), "a whole number of 32 bits")

    bbox, face = entry.get("bbox"), entry.get("face")
    if face is not None:
        is_face = _is_box(face) and face[0] < face[2] and face[1] < face[3]
        face = tuple(require("face", is_face, "four whole numbers x1 < x2, y1 < y2"))
    number, end = integer("id"), integer("end")
    start = integer("start") if "start" in entry else _start_of_word(caption, end)
    return Segment(
        id=number,
        bbox=tuple(require("bbox", _is_box(bbox), "four whole numbers x1, y1, x2, y2")),
        start=start,
        end=end,
        coco_label=require("coco_label", _is_text(entry.get("coco_label")), "a string"),
        face=face,
    )


def _is_int32(value: Any) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_int32, value))


def _start_of_word(caption: str, end: int) -> int:
    """Returns where the last word before `end` begins."""
    before = caption[: max(end, 0)].rstrip()
    return len(before) - len(before.split()[-1]) if before else 0


def _is_text(value: Any) -> bool:
    """Whether a value is a string without lone surrogates, which JSON can escape."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def decode_image(content: bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Decodes an item's JPEG or PNG.

    Its EXIF orientation is not applied, as the segment map matches the stored pixels.

    Raises:
        DataError: The file is damaged, truncated, or of an extreme size.
    """
    try:
        with open_image(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
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
    """Decodes an item's segment map from npy or PNG.

    Raises:
        DataError: The file is damaged, or its size is not (height, width), or its dtype not uint8.
    """
    try:
        if content.startswith(b"\x89PNG"):
            with open_image(io.BytesIO(content), formats=("PNG",)) as image:
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
    """Returns the array, or None and a description if it is another one. Unpickles nothing."""
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
