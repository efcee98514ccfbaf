"""Scenes painted by code, to stand people in: clearly different, never twice the same."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from fd_jax.demo.brushes import Rng, canvas, clouds, disc, random_bytes, ridge, shade, sky

Painting = UInt8[np.ndarray, "side side 3"]


class Scene(NamedTuple):
    """A kind of scene: how captions place somebody in it, and what paints it."""

    name: str
    phrases: tuple[str, ...]  # the first is the plainest
    paint: Callable[[Rng, int], Image.Image | np.ndarray]


def paint(scene: Scene, rng: Rng, side: int) -> Painting:
    """Returns one picture of a scene.

    Args:
        scene: One of `SCENES`.
        rng: Random generator of layout and colours.
        side: Height and width in pixels.
    """
    painted = np.asarray(scene.paint(rng, side), np.float32)
    # The light of the hour, and grain.
    painted = painted * rng.uniform(0.88, 1.1) + rng.normal(0, 2, (side, side, 1))
    return painted.clip(0, 255).astype(np.uint8)


def backdrop(rng: Rng, side: int) -> Painting:
    """Returns what may be behind somebody in a photograph: as often as not, a plain wall."""
    if rng.random() < 0.5:
        return paint(SCENES[rng.integers(len(SCENES))], rng, side)
    grey = rng.uniform(60, 235)
    ends = [grey + rng.normal(0, 25) + rng.normal(0, 8, 3) for _ in range(2)]
    return sky(side, *ends).clip(0, 255).astype(np.uint8)


def _brick_wall(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (196, 186, 176), (180, 170, 160)))
    height, width = side / rng.uniform(9, 12), side / rng.uniform(4.5, 6)
    shift = rng.uniform(0, width)
    for row in range(int(side / height) + 2):
        for column in range(-1, int(side / width) + 2):
            x, y = column * width + row % 2 * width / 2 - shift, row * height - height / 2
            fill = shade(rng, (168, 72, 50), 14)
            draw.rectangle((x, y, x + width - side / 50, y + height - side / 50), fill=fill)
    return image


def _beach(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, shade(rng, (92, 172, 238)), (186, 224, 250)))
    sea, sand = side * rng.uniform(0.3, 0.42), side * rng.uniform(0.55, 0.68)
    draw.rectangle((0, sea, side, side), fill=shade(rng, (28, 124, 172)))
    for _ in range(12):
        x, y = rng.uniform(0, side), rng.uniform(sea, sand)
        draw.line((x, y, x + side / 8, y), fill=(130, 196, 222), width=1)
    draw.polygon(ridge(rng, side, sand / side, 0.015), fill=(240, 246, 246))
    draw.polygon(ridge(rng, side, sand / side + 0.03, 0.015), fill=shade(rng, (236, 210, 152)))
    return image


def _snow(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, shade(rng, (176, 190, 208), 8), (222, 230, 238)))
    ground = rng.uniform(0.5, 0.62)
    for _ in range(7):
        x, y, tall = rng.uniform(0, side), side * (ground + 0.06), side * rng.uniform(0.25, 0.5)
        fill = shade(rng, (86, 112, 116), 8)
        draw.polygon([(x - tall / 4, y), (x, y - tall), (x + tall / 4, y)], fill=fill)
        snow = [(x - tall / 9, y - tall * 0.55), (x, y - tall), (x + tall / 9, y - tall * 0.55)]
        draw.polygon(snow, fill=(244, 248, 252))
    draw.polygon(ridge(rng, side, ground, 0.03), fill=(242, 246, 252))
    for _ in range(70):
        x, y = rng.uniform(0, side, 2)
        disc(draw, x, y, side / 110, (255, 255, 255))
    return image


def _city_night(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (10, 12, 34), (52, 38, 74)))
    x = -rng.uniform(0, side / 8)
    unit = side / 26
    while x < side:
        width, top = side * rng.uniform(0.12, 0.24), side * rng.uniform(0.08, 0.5)
        draw.rectangle((x, top, x + width, side), fill=shade(rng, (24, 24, 44), 5))
        for across in np.arange(x + unit / 2, x + width - unit, unit):
            for down in np.arange(top + unit / 2, side, unit * 1.4):
                if rng.random() < 0.5:
                    light = shade(rng, (252, 208, 104), 20)
                    draw.rectangle((across, down, across + unit / 2, down + unit * 0.7), fill=light)
        x += width
    return image


def _forest(rng: Rng, side: int) -> Image.Image:
    leaves = clouds(rng, side, 14)[..., None]
    image, draw = canvas(sky(side, (46, 110, 40), (24, 62, 26)) * (0.55 + 0.9 * leaves))
    for _ in range(9):
        x, width = rng.uniform(0, side), side * rng.uniform(0.025, 0.07)
        draw.rectangle((x, 0, x + width, side), fill=shade(rng, (70, 48, 32), 8))
    for _ in range(40):
        fill = shade(rng, (52, 126, 46), 20)
        disc(draw, rng.uniform(0, side), side * rng.uniform(0, 0.3), side / 28, fill)
    return image


def _bookshelves(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (60, 38, 24), (52, 32, 20)))
    shelf = side / rng.uniform(3.6, 5)
    colours = ((150, 40, 40), (40, 70, 120), (44, 100, 70), (190, 150, 70), (90, 60, 100))
    y = -rng.uniform(0, shelf)
    while y < side:
        x = 0.0
        while x < side:
            width, top = side * rng.uniform(0.022, 0.05), shelf * rng.uniform(0.08, 0.3)
            fill = shade(rng, colours[rng.integers(len(colours))], 16)
            draw.rectangle((x, y + top, x + max(width - 1, 0), y + shelf), fill=fill)
            x += width
        draw.rectangle((0, y + shelf, side, y + shelf * 1.1), fill=shade(rng, (132, 88, 52), 5))
        y += shelf * 1.1
    return image


def _stripes(rng: Rng, side: int) -> np.ndarray:
    colours = ((222, 196, 96), (132, 182, 214), (150, 194, 142))
    period, shift = side / rng.uniform(6, 9), rng.uniform(0, side)
    is_dark = ((np.arange(side) + shift) % period < period / 2)[None, :, None]
    light, dark = (250, 244, 230), shade(rng, colours[rng.integers(len(colours))], 10)
    return np.where(np.repeat(is_dark, side, axis=0), dark, light)


def _desert(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, shade(rng, (64, 128, 204)), (240, 214, 168)))
    for height, colour in ((0.42, (206, 138, 70)), (0.55, (222, 156, 84)), (0.72, (196, 124, 58))):
        draw.polygon(ridge(rng, side, height, 0.07), fill=shade(rng, colour, 8))
    return image.filter(ImageFilter.GaussianBlur(side / 160))


def _sunset(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, shade(rng, (112, 40, 96)), (255, 150, 40)))
    sea = side * rng.uniform(0.55, 0.7)
    x, radius = rng.uniform(0.15, 0.85) * side, side * rng.uniform(0.08, 0.13)
    disc(draw, x, sea - radius / 2, radius, (255, 236, 130))
    draw.rectangle((0, sea, side, side), fill=(70, 26, 60))
    for y in np.arange(sea + 1, side, side / 20):
        width = radius * rng.uniform(0.4, 1.2)
        draw.line((x - width, y, x + width, y), fill=(250, 164, 70), width=max(side // 64, 1))
    return image


def _mountains(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, shade(rng, (72, 136, 214)), (200, 224, 242)))
    for _ in range(5):
        x, top, wide = rng.uniform(0, side), side * rng.uniform(0.06, 0.3), side * 0.38
        fill = shade(rng, (104, 108, 126), 12)
        draw.polygon([(x - wide, side * 0.75), (x, top), (x + wide, side * 0.75)], fill=fill)
        cap = [(x - wide * 0.3, top + side * 0.2), (x, top), (x + wide * 0.28, top + side * 0.2)]
        draw.polygon([*cap, (x, top + side * 0.15)], fill=(248, 250, 252))
    draw.polygon(ridge(rng, side, 0.72, 0.03), fill=shade(rng, (62, 110, 66), 8))
    return image


def _meadow(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (120, 190, 240), (210, 234, 246)))
    horizon = rng.uniform(0.22, 0.34)
    draw.polygon(ridge(rng, side, horizon, 0.02), fill=shade(rng, (104, 178, 62), 8))
    colours = ((240, 70, 90), (250, 216, 60), (252, 252, 252), (196, 90, 206))
    for _ in range(150):
        y = rng.uniform(horizon + 0.05, 1)
        fill = colours[rng.integers(len(colours))]
        disc(draw, rng.uniform(0, side), side * y, side * 0.024 * y, fill)
    return image


def _stars(rng: Rng, side: int) -> Image.Image:
    glow = clouds(rng, side, 4)[..., None]
    image, draw = canvas(sky(side, (8, 10, 40), (18, 24, 74)) + 26 * glow)
    for _ in range(110):
        fill = shade(rng, (230, 232, 250), 20)
        x, y = rng.uniform(0, side, 2)
        disc(draw, x, y, side * rng.uniform(0.004, 0.011), fill)
    x, y, radius = rng.uniform(0.1, 0.9) * side, 0.16 * side, side * rng.uniform(0.06, 0.09)
    disc(draw, x, y, radius, (250, 246, 214))
    return image


def _autumn(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (214, 214, 200), (196, 150, 84)))
    for _ in range(6):
        x = rng.uniform(0, side)
        draw.line((x, 0, x + rng.normal(0, side / 20), side), fill=(74, 52, 42), width=side // 26)
    colours = ((226, 110, 28), (240, 170, 40), (190, 56, 30))
    for _ in range(230):
        fill = shade(rng, colours[rng.integers(len(colours))], 10)
        x, y = rng.uniform(0, side, 2)
        disc(draw, x, y, side * rng.uniform(0.016, 0.04), fill)
    return image


def _tiles(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (236, 240, 242), (228, 234, 238)))
    size, dx, dy = side / rng.uniform(7, 9.5), *rng.uniform(0, side / 8, 2)
    for x in np.arange(-dx, side, size):
        for y in np.arange(-dy, side, size):
            fill = shade(rng, (58, 168, 178), 7)
            draw.rectangle((x, y, x + size - side / 48, y + size - side / 48), fill=fill)
    return image


def _curtain(rng: Rng, side: int) -> np.ndarray:
    x = np.arange(side, dtype=np.float32) / side
    folds = np.sin(2 * np.pi * (x * rng.uniform(5, 8) + rng.random() + 0.1 * np.sin(9 * x)))
    light = (0.72 + 0.28 * folds)[None, :, None]
    return np.repeat(np.asarray(shade(rng, (176, 16, 30), 8)) * light, side, axis=0)


def _aquarium(rng: Rng, side: int) -> Image.Image:
    image, draw = canvas(sky(side, (40, 170, 206), (4, 44, 104)))
    for _ in range(6):
        x, y, long = *rng.uniform(0, side, 2), side * rng.uniform(0.05, 0.09)
        fill = shade(rng, ((255, 140, 20), (250, 220, 60))[rng.integers(2)], 8)
        draw.ellipse((x, y - long / 2, x + 1.5 * long, y + long / 2), fill=fill)
        draw.polygon([(x, y), (x - long / 2, y - long / 2), (x - long / 2, y + long / 2)], fill)
    for _ in range(24):
        x, y = rng.uniform(0, side, 2)
        disc(draw, x, y, side * rng.uniform(0.006, 0.016), (170, 226, 240))
    return image


def _planks(rng: Rng, side: int) -> np.ndarray:
    grain = np.asarray(Image.fromarray(random_bytes(rng, 6, side)).resize((side, side)), np.float32)
    width = side / rng.uniform(4.5, 6.5)
    where = (np.arange(side) + rng.uniform(0, width)) / width
    tones = rng.uniform(0.8, 1.1, int(where[-1]) + 1)[where.astype(int)][:, None, None]
    seam = np.where(where % 1 < 0.06, 0.4, 1)[:, None, None]
    wood = np.asarray(shade(rng, (160, 108, 64), 8), np.float32)
    # Planks lie across, their grain along them.
    return wood * tones * seam * (0.85 + 0.3 * grain.T[..., None] / 255)


def _dots(rng: Rng, side: int) -> Image.Image:
    colour = shade(rng, (240, 138, 176), 8)
    image, draw = canvas(sky(side, colour, colour))
    step = side / rng.uniform(6, 8)
    for row, y in enumerate(np.arange(-rng.uniform(0, step), side + step, step * 0.86)):
        for x in np.arange(-step, side + step, step):
            disc(draw, x + row % 2 * step / 2, y, step * 0.24, (255, 250, 250))
    return image


SCENES = (
    Scene(
        "brick wall",
        ("in front of a brick wall", "by a red brick wall", "at a wall of bricks"),
        _brick_wall,
    ),
    Scene("beach", ("at the beach", "on a sandy beach", "on a beach by the sea"), _beach),
    Scene("snow", ("in the snow", "in a snowy landscape", "on a snowy winter day"), _snow),
    Scene(
        "city at night",
        ("in the city at night", "before the lights of a city at night", "in a big city at night"),
        _city_night,
    ),
    Scene("forest", ("in a forest", "in a green forest", "among the trees of a forest"), _forest),
    Scene(
        "bookshelves",
        ("in front of bookshelves", "in a library full of books", "before shelves of books"),
        _bookshelves,
    ),
    Scene(
        "striped wallpaper",
        ("in front of striped wallpaper", "by a wall with stripes", "before a striped wall"),
        _stripes,
    ),
    Scene("desert", ("in the desert", "among the dunes of a desert", "in a hot desert"), _desert),
    Scene("sunset", ("at sunset", "by the sea at sunset", "before a red sunset"), _sunset),
    Scene(
        "mountains",
        ("in the mountains", "before snowy mountains", "in front of high mountains"),
        _mountains,
    ),
    Scene(
        "meadow",
        ("in a meadow of flowers", "in a garden full of flowers", "among flowers on a meadow"),
        _meadow,
    ),
    Scene(
        "starry sky",
        ("under a starry sky", "under the stars and the moon", "on a night full of stars"),
        _stars,
    ),
    Scene(
        "autumn leaves",
        ("among autumn leaves", "in a park in autumn", "under orange autumn leaves"),
        _autumn,
    ),
    Scene(
        "tiles", ("before a tiled wall", "by a wall of blue tiles", "in a tiled bathroom"), _tiles
    ),
    Scene(
        "red curtain",
        ("in front of a red curtain", "on a stage with a red curtain", "by a red curtain"),
        _curtain,
    ),
    Scene(
        "aquarium",
        ("in front of an aquarium", "under water with fish", "before a big aquarium"),
        _aquarium,
    ),
    Scene(
        "wooden wall",
        ("in front of a wooden wall", "by a wall of planks", "in a wooden cabin"),
        _planks,
    ),
    Scene(
        "polka dots",
        ("in front of pink polka dots", "by a wall with white dots", "before dotted wallpaper"),
        _dots,
    ),
)
