"""Contact sheets: many pictures at a glance, with labels and reference photographs."""

import bisect
import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Pixels = UInt8[np.ndarray, "_ _ 3"]  # of any size: those of one sheet may differ
INK = (30, 30, 30)
_SHEET_WIDTH = 4096  # approximate; many pictures share it, a few do not fill it
_CELL_SIDES = 128, 512
_SMALL, _SMALL_ON_SHEET = 192, 128  # approximate side that smaller pictures are enlarged to
_LABEL_WIDTH = 128
_LABEL_LINES = 3
_LABEL_LENGTH = 400  # characters; longer labels are cut before they are measured
_GAP, _SMALL_GAP = 12, 6


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
        labels: One label each, of a few lines at most; longer ones end in an ellipsis.
        references: Photographs of each picture's subjects, shown above it, as large as a small
            picture or half as wide as a large one.

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
    pictures = [scaled(image, side, _SMALL_ON_SHEET) for image in images]
    width = max(_LABEL_WIDTH, *(picture.width for picture in pictures))
    height = max(picture.height for picture in pictures)

    # Two photographs fill the width of a large picture, and more of them become smaller.
    most = max(len(row) for row in references)
    fitting = (width + _SMALL_GAP) // max(most, 2) - _SMALL_GAP
    thumb = max(fitting, min(width, _SMALL_ON_SHEET))
    strips = [_strip([scaled(image, thumb, thumb) for image in row], thumb) for row in references]
    width = max(width, *(strip.width for strip in strips))
    top = thumb + _SMALL_GAP if most else 0

    font = load_font(max(12, width // 28))
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


def scaled(image: Pixels, side: int, small: int = _SMALL) -> Image.Image:
    """Returns the image scaled down to fit a square, or up by a whole factor to about `small`."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        return picture
    factor = max(1, min(side // longest, round(small / longest)))
    size = factor * picture.width, factor * picture.height
    return picture.resize(size, Image.Resampling.LANCZOS)


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Loads Pillow's own font at a size in pixels."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it always is
    return font


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Returns the lines of `text` that fit, the last with an ellipsis if they are not all.

    Letters are reduced to those of Pillow's font: accents are dropped, others become a box.
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
    """Draws a row of pictures, each in the middle of its square."""
    stride = side + _SMALL_GAP
    strip = Image.new("RGB", (max(0, len(pictures) * stride - _SMALL_GAP), side), "white")
    for i, picture in enumerate(pictures):
        at = i * stride + (side - picture.width) // 2, (side - picture.height) // 2
        strip.paste(picture, at)
    return strip


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """Returns how many letters fit, at least one."""
    ends = range(2, len(text) + 1)
    return 1 + bisect.bisect_right(ends, width, key=lambda end: font.getlength(text[:end]))
