"""Draws predictions, saliency maps and masks over the steps of sampling."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fd_jax.errors import InputError
from fd_jax.images.sheets import INK, Pixels, load_font, scaled, text_block, wrap

# Dark to light in perceptually even steps, so that equal differences of saliency look equal.
_HEAT = (
    (8, 6, 24),
    (62, 17, 104),
    (133, 36, 118),
    (208, 68, 86),
    (246, 138, 52),
    (253, 238, 170),
)
_TDM, _SDM = (68, 119, 170), (238, 119, 51)  # told apart by the colour-blind too
_HATCHING = (228, 228, 228), (206, 206, 206)

_SHEET_WIDTH = 2400  # width of all panels, if there are many
_PANEL_SIDES = 96, 256
_MARGIN, _PADDING, _GAP = 28, 14, 6
_REFERENCES = "Photographs"

Maps = Float[np.ndarray, "n lh lw"]  # latent pixels


def trace_sheet(
    predicted: UInt8[np.ndarray, "n h w 3"],
    tdm_saliency: Maps,
    sdm_saliency: Maps,
    mask: Maps,
    *,
    steps: Sequence[str],
    title: str,
    references: Sequence[Pixels] = (),
) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a grid with a column per step: the predicted image, saliency maps and the mask.

    Args:
        predicted: Image predicted at each step.
        tdm_saliency: Saliency of the TDM; NaN where it did not run. Each map is scaled to its own
            range, as a softmax over pixels varies little around its mean.
        sdm_saliency: Saliency of the SDM, likewise.
        mask: Share of the SDM in the noise, 0..1.
        steps: Heading of each column, such as `16 fusion`.
        title: Heading of the sheet.
        references: Photographs of the subjects as the image encoder gets them.

    Raises:
        InputError: There is no step, or not one heading for each.
    """
    if not len(predicted) or len(steps) != len(predicted):
        raise InputError(
            f"{len(predicted)} steps and {len(steps)} headings, expected as many of each and at "
            "least one"
        )
    smallest, largest = _PANEL_SIDES
    side = min(max(_SHEET_WIDTH // len(predicted), smallest), largest)
    rows = trace_panels(predicted, tdm_saliency, sdm_saliency, mask, side)
    size = next(iter(rows.values()))[0].size

    font = load_font(15)
    large = load_font(22)
    labels = [*rows, _REFERENCES] if references else [*rows]
    left = _MARGIN + max(round(font.getlength(label)) for label in labels) + _PADDING
    grid_width = len(steps) * (size[0] + _GAP) - _GAP
    legend = _legend(font)
    shown = [scaled(image, side) for image in references]
    strip = sum(photograph.width + _GAP for photograph in shown)
    width = left + max(grid_width, legend.width, strip) + _MARGIN
    heading = text_block(wrap(title, large, width - 2 * _MARGIN, 3), large)
    columns = [text_block(wrap(step, font, size[0], 2), font, centred=True) for step in steps]
    begin = _MARGIN + heading.height + _PADDING
    top = begin + max(block.height for block in columns) + _GAP
    if shown:
        top += max(photograph.height for photograph in shown) + 2 * _PADDING
    bottom = top + len(rows) * (size[1] + _GAP) - _GAP + _PADDING

    sheet = Image.new("RGB", (width, bottom + legend.height + _MARGIN), "white")
    sheet.paste(heading, (_MARGIN, _MARGIN))
    sheet.paste(legend, (left, bottom))
    for i, photograph in enumerate(shown):
        sheet.paste(photograph, (left + sum(p.width + _GAP for p in shown[:i]), begin))
    if shown:
        at = left - _PADDING, begin + shown[0].height // 2
        ImageDraw.Draw(sheet).text(at, _REFERENCES, fill=INK, font=font, anchor="rm")
    for i, block in enumerate(columns):
        x = left + i * (size[0] + _GAP) + (size[0] - block.width) // 2
        sheet.paste(block, (x, top - _GAP - block.height))
    for j, (label, panels) in enumerate(rows.items()):
        y = top + j * (size[1] + _GAP)
        at = left - _PADDING, y + size[1] // 2
        ImageDraw.Draw(sheet).text(at, label, fill=INK, font=font, anchor="rm")
        for i, panel in enumerate(panels):
            sheet.paste(panel, (left + i * (size[0] + _GAP), y))
    return np.array(sheet)


def trace_panels(
    predicted: UInt8[np.ndarray, "n h w 3"],
    tdm_saliency: Maps,
    sdm_saliency: Maps,
    mask: Maps,
    side: int,
) -> dict[str, list[Image.Image]]:
    """Returns the panels of `trace_sheet` by the label of their row, one for each step."""
    pictures = [scaled(image, side) for image in predicted]
    size = pictures[0].size
    return {
        "Predicted image": pictures,
        "TDM saliency": [_heat_map(saliency, size) for saliency in tdm_saliency],
        "SDM saliency": [_heat_map(saliency, size) for saliency in sdm_saliency],
        "Noise taken from": [_coloured(share, size, (_TDM, _SDM)) for share in mask],
    }


def _heat_map(saliency: Float[np.ndarray, "lh lw"], size: tuple[int, int]) -> Image.Image:
    lowest, highest = saliency.min(), saliency.max()  # both NaN where the model did not run
    # Differences of rounding alone count as flat.
    is_flat = highest - lowest <= 1e-6 * abs(highest)
    return _coloured((saliency - lowest) / (1 if is_flat else highest - lowest), size, _HEAT)


def _coloured(
    levels: Float[np.ndarray, "lh lw"], size: tuple[int, int], anchors: Sequence[Sequence[int]]
) -> Image.Image:
    """Enlarges levels in [0, 1] and colours them between the anchors; NaN becomes hatching."""
    y, x = np.ogrid[: size[1], : size[0]]
    levels = levels[y * levels.shape[0] // size[1], x * levels.shape[1] // size[0]]
    stops = np.linspace(0, 1, len(anchors))
    colours = np.stack([np.interp(levels, stops, c) for c in np.transpose(anchors)], axis=-1)
    hatching = np.array(_HATCHING)[(x + y) // 5 % 2]
    pixels = np.where(np.isfinite(levels)[..., None], colours, hatching)
    return Image.fromarray(np.round(pixels).astype(np.uint8))


def _legend(font: ImageFont.FreeTypeFont) -> Image.Image:
    height = sum(font.getmetrics())
    square = (height, height)
    keys = {
        "TDM": Image.new("RGB", square, _TDM),
        "SDM": Image.new("RGB", square, _SDM),
        "saliency, from the lowest to the highest of its panel": _coloured(
            np.linspace(0, 1, 6 * height)[None], (6 * height, height), _HEAT
        ),
        "the model did not run": _coloured(np.full((1, 1), np.nan), (2 * height, height), _HEAT),
    }
    blocks = [part for key, swatch in keys.items() for part in (swatch, text_block([key], font))]
    gaps = [_GAP, 2 * _PADDING] * len(keys)
    legend = Image.new("RGB", (sum(block.width for block in blocks) + sum(gaps), height), "white")
    x = 0
    for block, gap in zip(blocks, gaps, strict=True):
        legend.paste(block, (x, 0))
        x += block.width + gap
    return legend
