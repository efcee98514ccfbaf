"""Pictures on disk: PNG files that hold their settings, and sheets of many at a glance."""

import bisect
import contextlib
import json
import math
import os
import re
import secrets
import struct
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from fd_jax.errors import InputError

Pixels = UInt8[np.ndarray, "_ _ 3"]  # of any size: those of one sheet may differ

# What Pillow raises on damaged PNG files.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, EOFError, RuntimeError, struct.error)
_DAMAGE += (Image.DecompressionBombError,)

INK = (30, 30, 30)
_SHEET_WIDTH = 4096  # about; many pictures share it, a few do not fill it
_CELL_SIDES = 128, 512
_SMALL = 192  # about what smaller pictures are enlarged to
_LABEL_WIDTH = 128
_LABEL_LINES = 3
_LABEL_LENGTH = 400  # more is not worth measuring
_GAP, _SMALL_GAP = 12, 6


class OutputError(InputError):
    """A picture that cannot be written, or a file without readable settings."""


def write_png(
    path: str | os.PathLike,
    image: UInt8[np.ndarray, "h w 3"],
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Writes a picture and the settings that it was made with, whole or not at all.

    Args:
        path: A file in a folder that exists.
        image: Levels of RGB.
        settings: One PNG text chunk each, named by printable ASCII such as `prompt` or `seed`.
            Strings are stored as they are, anything else as JSON.
        overwrite: Whether to replace the file if it exists. Otherwise none is ever replaced, even
            if another process writes it at the same time.

    Raises:
        OutputError: The file exists already or cannot be written, or a setting cannot be stored.
    """
    path = Path(path)
    chunks = _text_chunks(path, settings)
    with _errors_named(path):
        # A name unlike the picture's, which may be as long as names can be.
        temporary = path.with_name(f".{secrets.token_hex(8)}.part")
        file = temporary.open("xb")
        try:
            with file:
                Image.fromarray(image).save(file, "PNG", pnginfo=chunks)
            if overwrite:
                os.replace(temporary, path)
            else:
                _link_or_claim(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def check_folder(folder: str | os.PathLike) -> None:
    """Makes the folder if need be, and tries to write to it. Raises OutputError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = error.strerror or error
        raise OutputError(f"cannot write to the output folder {folder}: {problem}") from error


def check_new(paths: Sequence[Path]) -> None:
    """Raises OutputError if a file exists already."""
    if existing := [str(path) for path in paths if os.path.lexists(path)]:
        more = f" and {len(existing) - 3} more" * (len(existing) > 3)
        raise OutputError(
            f"{', '.join(existing[:3])}{more} exist already, expected new names "
            "(replace them with --overwrite)"
        )


def read_settings(path: str | os.PathLike) -> dict[str, str]:
    """Returns what `write_png` stored, without parsing the values that are JSON.

    Raises:
        OutputError: The file is missing, damaged, or no PNG file.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return {key: str(value) for key, value in image.text.items()}
    except _DAMAGE as error:
        raise OutputError(f"{path} cannot be read, expected a PNG file: {error}") from error


def contact_sheet(
    images: Sequence[Pixels],
    labels: Sequence[str],
    *,
    references: Sequence[Sequence[Pixels]] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pictures on white, in a near-square grid, each above its label.

    Pictures are scaled down to their cell, or up by whole factors if they are small, and keep
    their aspect.

    Args:
        images: One or more, in the order of reading.
        labels: One line or a few for each; what does not fit ends in an ellipsis.
        references: For each picture the photographs of its subjects, shown small above it.

    Raises:
        ValueError: There is no picture, or not one label and one row of references for each.
    """
    if references is None:
        references = [()] * len(images)
    if not images or not len(images) == len(labels) == len(references):
        raise ValueError(
            f"{len(images)} pictures, {len(labels)} labels and {len(references)} rows of "
            "references, expected as many of each and at least one"
        )
    columns = math.ceil(math.sqrt(len(images)))
    smallest, largest = _CELL_SIDES
    side = min(max(_SHEET_WIDTH // columns, smallest), largest)
    pictures = [scaled(image, side) for image in images]
    width = max(_LABEL_WIDTH, *(picture.width for picture in pictures))
    height = max(picture.height for picture in pictures)

    # Two photographs fill the width, and more of them become smaller.
    most = max(len(row) for row in references)
    thumb = max(1, (width + _SMALL_GAP) // max(most, 2) - _SMALL_GAP)
    strips = [_strip([scaled(image, thumb) for image in row], thumb) for row in references]
    top = thumb + _SMALL_GAP if most else 0

    font = ImageFont.load_default(max(12, width // 28))
    texts = [wrap(label, font, width, _LABEL_LINES) for label in labels]
    blocks = [text_block(lines, font, centred=True) for lines in texts]
    bottom = _SMALL_GAP + max(block.height for block in blocks) + _GAP

    rows = math.ceil(len(images) / columns)
    stride = width + _GAP, top + height + bottom + _GAP
    size = _GAP + columns * stride[0], _GAP + rows * stride[1]
    sheet = Image.new("RGB", size, "white")
    for i, (strip, picture, block) in enumerate(zip(strips, pictures, blocks, strict=True)):
        row, column = divmod(i, columns)
        middle = _GAP + column * stride[0] + width // 2
        y = _GAP + row * stride[1] + top + height - picture.height
        sheet.paste(strip, (middle - strip.width // 2, y - top))
        sheet.paste(picture, (middle - picture.width // 2, y))
        sheet.paste(block, (middle - block.width // 2, y + picture.height + _SMALL_GAP))
    return np.array(sheet)


def scaled(image: Pixels, side: int) -> Image.Image:
    """Returns the image scaled down to fit a square, or up by a whole factor if it is small."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture
    factor = max(1, min(side // longest, round(_SMALL / longest)))
    size = factor * picture.width, factor * picture.height
    return picture.resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Returns the lines of `text` that fit, the last with an ellipsis if they are not all.

    Letters become what Pillow's own font can draw: accents go, and what else it lacks is a box.
    """
    if len(text) > _LABEL_LENGTH:
        text = text[:_LABEL_LENGTH] + "..."
    letters = [
        letter if letter.isprintable() else " "
        for letter in unicodedata.normalize("NFKD", text)
        if unicodedata.category(letter) not in ("Mn", "Me", "Cf")
    ]
    rest = " ".join(unicodedata.normalize("NFC", "".join(letters)).split())
    lines = []
    while rest and len(lines) < max_lines:
        end = _fitting(rest, font, width)
        if end < len(rest) and (space := rest.rfind(" ", 1, end + 1)) > 0:
            end = space
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        ellipsis = "\u2026"
        end = _fitting(lines[-1], font, width - math.ceil(font.getlength(ellipsis)))
        lines[-1] = lines[-1][:end].rstrip() + ellipsis
    return lines


def text_block(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, *, centred: bool = False
) -> Image.Image:
    """Returns the lines drawn on white, as wide as they are."""
    width = math.ceil(max(map(font.getlength, lines), default=0))
    line_height = sum(font.getmetrics())
    block = Image.new("RGB", (width, len(lines) * line_height), "white")
    x, anchor = (width // 2, "ma") if centred else (0, "la")
    for i, line in enumerate(lines):
        ImageDraw.Draw(block).text((x, i * line_height), line, fill=INK, font=font, anchor=anchor)
    return block


def _strip(pictures: Sequence[Image.Image], side: int) -> Image.Image:
    """A row of pictures, each in the middle of its square."""
    stride = side + _SMALL_GAP
    strip = Image.new("RGB", (max(0, len(pictures) * stride - _SMALL_GAP), side), "white")
    for i, picture in enumerate(pictures):
        at = i * stride + (side - picture.width) // 2, (side - picture.height) // 2
        strip.paste(picture, at)
    return strip


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many letters fit, one at least."""
    ends = range(2, len(text) + 1)
    return 1 + bisect.bisect_right(ends, width, key=lambda end: font.getlength(text[:end]))


def _text_chunks(path: Path, settings: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        if not re.fullmatch("[!-~]([ -~]{0,77}[!-~])?", key):  # what PNG allows, without Latin-1
            raise OutputError(
                f"{path}: a setting is named {key!r}, expected 1 to 79 printable ASCII characters"
            )
        try:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            chunks.add_text(key, text)
        except (TypeError, ValueError) as error:
            raise OutputError(
                f"{path}: setting {key} is {value!r:.80}, expected text or a JSON value: {error}"
            ) from error
    return chunks


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputError(f"{path} exists already; pass --overwrite to replace it") from error
    except (OSError, ValueError, SystemError) as error:
        problem = getattr(error, "strerror", None) or error
        if not path.parent.is_dir():
            problem = f"expected the folder {path.parent} to exist"
        raise OutputError(f"{path} cannot be written: {problem}") from error


def _link_or_claim(source: Path, path: Path) -> None:
    """Gives the file its name; raises FileExistsError if that is taken."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        # No hard links, as in mounted buckets: take the name with an empty file, then replace it.
        path.open("xb").close()
        try:
            os.replace(source, path)
        except OSError:
            path.unlink()
            raise
