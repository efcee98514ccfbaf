"""Shapes and textures that painted scenes are made of."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

Rng = np.random.Generator
Colour = Sequence | np.ndarray  # red, green and blue, 0..255


def shade(rng: Rng, colour: Colour, amount: int = 12) -> tuple[int, int, int]:
    """Draws a colour near this one."""
    near = np.asarray(colour) + rng.normal(0, amount) + rng.normal(0, amount / 3, 3)
    red, green, blue = near.clip(0, 255).astype(int).tolist()
    return red, green, blue


def sky(side: int, top: Colour, bottom: Colour) -> Float[np.ndarray, "side side 3"]:
    """Returns a gradient from the top of the image to its bottom."""
    share = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    column = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
    return np.repeat(column, side, axis=1)


def canvas(pixels: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns an image of pixels, and a pen that draws on it."""
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, ImageDraw.Draw(image)


def clouds(rng: Rng, side: int, cells: int) -> Float[np.ndarray, "side side"]:
    """Returns smooth noise in 0..1 with about `cells` bumps per axis."""
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255


def disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple) -> None:
    """Draws a filled circle."""
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def ridge(rng: Rng, side: int, height: float, roughness: float) -> list[tuple]:
    """Returns the outline of hills across the image, about `height` of it from the top."""
    x = np.linspace(0, side, 9)
    y = side * (height + roughness * rng.uniform(-1, 1, 9))
    return [(0, side), *zip(x, y, strict=True), (side, side)]


def random_bytes(rng: Rng, height: int, width: int) -> np.ndarray:
    """Draws uniform noise."""
    return (rng.random((height, width)) * 255).astype(np.uint8)
