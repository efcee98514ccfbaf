"""Resizes and augments training images, segment maps and crops, all of them uint8 arrays."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from scipy import ndimage

from fd_jax.data.photographs import subject_pixels

Pixels = UInt8[np.ndarray, "h w 3"]
Square = UInt8[np.ndarray, "r r 3"]

_MAX_ANGLE = 30  # degrees
_JITTER = 0.5  # factors 0.5 to 1.5 of brightness, contrast, saturation; half a turn of hue
_BLUR_SIGMAS = (0.1, 2.0)
_ELASTIC_ALPHA, _ELASTIC_SIGMA = 50.0, 5.0


def fit_image(image: Pixels, resolution: int, *, flip: bool = False) -> Square:
    """Resizes an image to a square, and mirrors it if `flip`.

    The short side becomes `resolution`. Landscapes are cropped at the centre, portraits padded
    with black at the sides and shrunk. Equals the released code within one grey level.
    """
    height, width, _ = image.shape
    # Portraits are resized twice; rounding to bytes each time would err by two grey levels.
    resize = _resize_as_floats if height > width else _resize
    image = resize(image, _short_side_to(resolution, height, width))
    if flip:
        image = image[:, ::-1]
    if height <= width:
        return np.ascontiguousarray(_centre(image))
    return _resize_as_floats(_pad(image), (resolution, resolution))


def fit_map(
    segment_map: UInt8[np.ndarray, "h w"], resolution: int, *, flip: bool = False
) -> UInt8[np.ndarray, "r r"]:
    """Resizes a segment map as `fit_image` resizes its image; equals the released code.

    It takes the nearest pixels, except when it shrinks portraits: there the released code
    interpolates, and intermediate values appear along the borders of segments.
    """
    height, width = segment_map.shape
    size = _short_side_to(resolution, height, width)
    columns = _nearest(width, size[0])
    rows = _nearest(height, size[1])
    segment_map = segment_map[rows[:, None], columns]
    if flip:
        segment_map = segment_map[:, ::-1]
    if height <= width:
        return np.ascontiguousarray(_centre(segment_map))
    # Slower than Pillow but exact: another value would be another segment.
    pixels = subject_pixels(np.repeat(segment_map[..., None], 3, axis=2), resolution)
    return np.rint(pixels[..., 0] * 255).astype(np.uint8)


def noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Draws bytes uniformly from 0..254; the released code never draws 255."""
    drawn = np.frombuffer(bytearray(rng.bytes(height * width * 3)), np.uint8)
    # One byte in 256 is drawn again, twice as fast as drawing from 0..254.
    again = np.flatnonzero(drawn == 255)
    drawn[again] = rng.integers(0, 255, len(again), dtype=np.uint8)
    return drawn.reshape(height, width, 3)


def top_square(pixels: Pixels) -> UInt8[np.ndarray, "rows w 3"]:
    """Crops a portrait to the square at its top; other images are not changed."""
    return pixels[: pixels.shape[1]]


def pad_and_resize(pixels: Pixels, resolution: int) -> Square:
    """Pads pixels with black to a square and resizes them (bilinear, antialiased)."""
    return _resize(_pad(pixels), (resolution, resolution))


def augment(pixels: Square, rng: np.random.Generator) -> Square:
    """Augments a subject: rotates, recolours, blurs, greys, mirrors and deforms it at random.

    These are the augmentations of FastComposer with the parameters of torchvision, in this order:
    rotation by up to 30 degrees (probability 0.75), colour jitter (0.5), blur (0.5), grey (0.1),
    mirror (0.5), elastic deformation (0.5).
    """
    image = Image.fromarray(pixels)
    if rng.random() < 0.75:
        angle = rng.uniform(-_MAX_ANGLE, _MAX_ANGLE)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
    if rng.random() < 0.5:
        image = _jitter(image, rng)
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = gaussian_blur(pixels, rng.uniform(*_BLUR_SIGMAS))
    if rng.random() < 0.1:
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        pixels = np.repeat(grey[..., None], 3, axis=2)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    if rng.random() < 0.5:
        pixels = bend(pixels, elastic_shift(rng, len(pixels)))
    return np.ascontiguousarray(pixels)


def gaussian_blur(pixels: Pixels, sigma: float) -> Pixels:
    """Blurs with a kernel of 5 x 5 taps, with mirrored borders."""
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = ndimage.correlate1d(pixels, kernel, axis=0, output=np.float32, mode="mirror")
    blurred = ndimage.correlate1d(blurred, kernel, axis=1, mode="mirror")
    return np.rint(blurred).astype(np.uint8)


def elastic_shift(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws a smooth field of displacements in pixels, [2, side, side]: down and right."""
    shift = rng.random((2, side, side), np.float32) * 2 - 1
    for axis in (1, 2):
        shift = ndimage.gaussian_filter1d(
            shift, _ELASTIC_SIGMA, axis=axis, mode="mirror", truncate=4.0
        )
    # torchvision's alpha is in units of half an image side, divided by the side.
    return shift * np.float32(_ELASTIC_ALPHA / 2)


def bend(pixels: Square, shift: np.ndarray) -> Square:
    """Samples pixels at the displacements `shift` (bilinear, black outside)."""
    side = len(pixels)
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0))).reshape(-1, 3)
    where = shift + np.mgrid[:side, :side].astype(np.float32) + 1
    where = np.clip(where, 0, side + 0.999)
    corner = where.astype(np.int32)
    (down, right) = (where - corner)[..., None]
    first = corner[0] * (side + 2) + corner[1]
    upper = padded[first] * (1 - right) + padded[first + 1] * right
    first += side + 2
    lower = padded[first] * (1 - right) + padded[first + 1] * right
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """torchvision's ColorJitter: four changes of colour in random order."""
    low, high = 1 - _JITTER, 1 + _JITTER
    for change in rng.permutation(4):
        if change == 3:
            image = shift_hue(image, rng.uniform(-_JITTER, _JITTER))
        else:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[change]
            image = kind(image).enhance(rng.uniform(low, high))
    return image


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Shifts the hues of an RGB image by a fraction of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    table = [(level + round(turns * 255)) % 256 for level in range(256)]
    return Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")


def _short_side_to(resolution: int, height: int, width: int) -> tuple[int, int]:
    """Returns width and height with short side `resolution`, rounded as in torchvision."""
    if height > width:
        return resolution, int(resolution * height / width)
    return int(resolution * width / height), resolution


def _nearest(before: int, after: int) -> np.ndarray:
    """Returns the pixels that PyTorch's nearest interpolation takes, in its float32 arithmetic."""
    scale = np.float32(before / after)
    chosen = (np.arange(after, dtype=np.float32) * scale).astype(int)
    return np.minimum(chosen, before - 1)


def _centre(array: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h h *c"]:
    height, width = array.shape[:2]
    left = (width - height) // 2
    return array[:, left : left + height]


def _pad(pixels: Pixels) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pads the short side with black to a square, one pixel short if the difference is odd."""
    height, width, _ = pixels.shape
    rows, columns = max(width - height, 0) // 2, max(height - width, 0) // 2
    if not rows and not columns:
        return pixels
    square = np.zeros((height + 2 * rows, width + 2 * columns, 3), np.uint8)
    square[rows : rows + height, columns : columns + width] = pixels
    return square


def _resize(pixels: Pixels, size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _resize_as_floats(pixels: Pixels, size: tuple[int, int]) -> UInt8[np.ndarray, "rows columns 3"]:
    channels = [Image.fromarray(x) for x in np.moveaxis(pixels, 2, 0).astype(np.float32)]
    resized = [np.asarray(x.resize(size, Image.Resampling.BILINEAR)) for x in channels]
    return np.rint(np.stack(resized, axis=2)).astype(np.uint8)
