"""Training images, segment maps and crops of subjects: arrays of bytes in, arrays of bytes out."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance
from scipy import ndimage

from fd_jax.data.photographs import subject_pixels

Pixels = UInt8[np.ndarray, "h w 3"]
Square = UInt8[np.ndarray, "r r 3"]

_MAX_ANGLE = 30  # degrees
_JITTER = 0.5  # brightness, contrast and saturation from 0.5 to 1.5, hue by half a turn at most
_BLUR_SIGMAS = (0.1, 2.0)
_ELASTIC_ALPHA, _ELASTIC_SIGMA = 50.0, 5.0


def fit_image(image: Pixels, resolution: int, *, flip: bool = False) -> Square:
    """Returns the image as a square of this side, mirrored on demand.

    The short side becomes `resolution`. Landscapes are cropped at the centre, portraits padded
    with black at the sides and shrunk. Equal to the released code within one grey level.
    """
    height, width, _ = image.shape
    # Portraits are resized twice. Bytes, rounded at each step, would end two grey levels off.
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
    """Returns the segment map that belongs to `fit_image`, equal to the released code's.

    Nearest pixels, but for the shrinking of portraits: there the released code interpolates, so
    that along the borders of segments values in between appear.
    """
    height, width = segment_map.shape
    size = _short_side_to(resolution, height, width)
    columns, rows = (_nearest(*pair) for pair in zip((width, height), size, strict=True))
    segment_map = segment_map[rows[:, None], columns]
    if flip:
        segment_map = segment_map[:, ::-1]
    if height <= width:
        return np.ascontiguousarray(_centre(segment_map))
    # Slow, but exact where Pillow is not: another value is another segment.
    pixels = subject_pixels(np.repeat(segment_map[..., None], 3, axis=2), resolution)
    return np.rint(pixels[..., 0] * 255).astype(np.uint8)


def noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Returns bytes drawn uniformly from 0..254: the released code never draws 255."""
    drawn = np.frombuffer(bytearray(rng.bytes(height * width * 3)), np.uint8)
    # Twice as fast as drawing from 0..254: one byte in 256 is drawn again.
    again = np.flatnonzero(drawn == 255)
    drawn[again] = rng.integers(0, 255, len(again), dtype=np.uint8)
    return drawn.reshape(height, width, 3)


def top_square(pixels: Pixels) -> UInt8[np.ndarray, "rows w 3"]:
    """Returns the upper part of a portrait, as high as wide; other pixels as they are."""
    return pixels[: pixels.shape[1]]


def pad_and_resize(pixels: Pixels, resolution: int) -> Square:
    """Returns pixels padded with black to a square, then resized (bilinear, antialias)."""
    return _resize(_pad(pixels), (resolution, resolution))


def augment(pixels: Square, rng: np.random.Generator) -> Square:
    """Returns a subject rotated, recoloured, blurred, greyed, mirrored and bent, each by chance.

    The augmentations of FastComposer with the parameters of torchvision, in this order: rotation
    by up to 30 degrees (probability 0.75), colour jitter (0.5), blur (0.5), grey (0.1), mirror
    (0.5), elastic deformation (0.5).
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
    """Blurs with a kernel of five taps a side, mirrored at the borders."""
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
    kernel /= kernel.sum()
    blurred = ndimage.correlate1d(pixels, kernel, axis=0, output=np.float32, mode="mirror")
    blurred = ndimage.correlate1d(blurred, kernel, axis=1, mode="mirror")
    return np.rint(blurred).astype(np.uint8)


def elastic_shift(rng: np.random.Generator, side: int) -> np.ndarray:
    """Draws a smooth field of shifts in pixels, [2, side, side]: down and to the right."""
    shift = rng.random((2, side, side), np.float32) * 2 - 1
    for axis in (1, 2):
        shift = ndimage.gaussian_filter1d(
            shift, _ELASTIC_SIGMA, axis=axis, mode="mirror", truncate=4.0
        )
    # torchvision's alpha counts in half image sides, divided by the side.
    return shift * np.float32(_ELASTIC_ALPHA / 2)


def bend(pixels: Square, shift: np.ndarray) -> Square:
    """Returns, at each pixel, what lies `shift` away from it (bilinear, black outside)."""
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
    """Returns an RGB image with its hues shifted by a share of the colour circle."""
    hue, saturation, value = image.convert("HSV").split()
    table = [(level + round(turns * 255)) % 256 for level in range(256)]
    return Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")


def _short_side_to(resolution: int, height: int, width: int) -> tuple[int, int]:
    """Width and height once the short side is `resolution`, rounded as in torchvision."""
    if height > width:
        return resolution, int(resolution * height / width)
    return int(resolution * width / height), resolution


def _nearest(before: int, after: int) -> np.ndarray:
    """The pixels that torch's nearest interpolation takes; its arithmetic is of 32 bits."""
    scale = np.float32(before / after)
    chosen = (np.arange(after, dtype=np.float32) * scale).astype(int)
    return np.minimum(chosen, before - 1)


def _centre(array: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h h *c"]:
    height, width = array.shape[:2]
    left = (width - height) // 2
    return array[:, left : left + height]


def _pad(pixels: Pixels) -> UInt8[np.ndarray, "rows columns 3"]:
    """Pads with black at the ends of the short side; one pixel is lacking where that is odd."""
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
    resized = [channel.resize(size, Image.Resampling.BILINEAR) for channel in channels]
    return np.rint(np.stack(resized, axis=2)).astype(np.uint8)
