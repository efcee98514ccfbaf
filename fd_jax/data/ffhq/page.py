"""Draws training items for visual inspection: images, segments, captions and crops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from fd_jax.data import transforms
from fd_jax.data.crops import subject_crops
from fd_jax.data.ffhq.record import Record, decode_image, decode_map
from fd_jax.images.sheets import load_font, text_block, wrap

_COLOURS = ((68, 119, 170), (238, 119, 51), (34, 136, 51), (204, 51, 119), (170, 170, 50))
_SIDE, _GAP, _BORDER = 224, 12, 4
_CAPTION_WIDTH = 640  # at least


def draw_page(records: Sequence[Record]) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a row for each item: image, coloured segments, and crops without augmentation.

    The noun phrase of each segment is in brackets in the caption, and below its crop.

    Raises:
        DataError: An item cannot be trained on.
    """
    rows = [_row(record) for record in records]
    width = 2 * _GAP + max(row.width for row in rows)
    page = Image.new("RGB", (width, _GAP + sum(row.height + _GAP for row in rows)), "white")
    y = _GAP
    for row in rows:
        page.paste(row, (_GAP, y))
        y += row.height + _GAP
    return np.array(page)


def _row(record: Record) -> Image.Image:
    image = decode_image(record.image, record.id)
    segment_map = decode_map(record.segment_map, record.id, *image.shape[:2])
    segments = sorted(record.segments, key=lambda segment: segment.end)
    rng = np.random.default_rng(0)
    crops = subject_crops(image, segment_map, segments, record.id, rng)

    coloured = image.copy()
    caption = record.caption
    labels = [record.id, ""]
    colours: list[Any] = ["white", "white"]
    for i, segment in enumerate(segments):
        colour = _COLOURS[i % len(_COLOURS)]
        inside = segment_map == segment.id
        coloured[inside] = image[inside] // 2 + np.array(colour, np.uint8) // 2
        words = record.caption[segment.start : segment.end]
        labels.append(f"{words} ({segment.coco_label} {segment.id})")
        colours.append(colour)
    borders = [(s.start, "[") for s in segments] + [(s.end, "]") for s in segments]
    for offset, bracket in sorted(borders, reverse=True):
        caption = caption[:offset] + bracket + caption[offset:]

    font = load_font(14)
    line = sum(font.getmetrics())
    width = max(len(labels) * (_SIDE + _GAP) - _GAP, _CAPTION_WIDTH)
    row = Image.new("RGB", (width, _SIDE + 3 * line), "white")
    inner = _SIDE - 2 * _BORDER
    images = [image, coloured, *crops]
    for i, (pixels, label, colour) in enumerate(zip(images, labels, colours, strict=True)):
        x = i * (_SIDE + _GAP)
        ImageDraw.Draw(row).rectangle((x, 0, x + _SIDE - 1, _SIDE - 1), fill=colour)
        square = Image.fromarray(transforms.pad_and_resize(pixels, inner))
        row.paste(square, (x + _BORDER, _BORDER))
        row.paste(text_block(wrap(label, font, _SIDE, 1), font), (x, _SIDE))
    row.paste(text_block(wrap(caption, font, width, 2), font), (0, _SIDE + line))
    return row
