"""Crops of subjects, to be encoded as their references."""

import importlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from fd_jax.data import transforms
from fd_jax.data.ffhq.record import DataError, Segment
from fd_jax.errors import InputError

# Draws the backdrop of a portrait: (rng, side) -> [side, side, 3] uint8.
Backdrop = Callable[[np.random.Generator, int], np.ndarray]

_MAX_MARGIN = 1.3  # side of a portrait over the longer side of its subject


def load_backdrop(name: str) -> Backdrop:
    """Imports a backdrop function.

    Args:
        name: `module:function`, such as `fd_jax.demo.painters:backdrop`.

    Raises:
        InputError: There is no such function.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"backdrop is {name!r}, expected module:function such as "
            f"fd_jax.demo.painters:backdrop: {error}"
        ) from error


def subject_crops(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: UInt8[np.ndarray, "h w"],
    subjects: Sequence[Segment],
    name: str,
    rng: np.random.Generator,
    background: UInt8[np.ndarray, "rows columns 3"] | None = None,
) -> list[np.ndarray]:
    """Cuts each subject's bbox out of an image, with a background outside of its segment.

    Args:
        image: Image of the item.
        segment_map: Segment map of the item.
        subjects: Segments whose bboxes lie within the image.
        name: Id of the item, for errors.
        rng: Generator of the noise.
        background: Pixels that replace the surroundings, in the image's coordinates; uniform noise
            by default.

    Raises:
        DataError: A bbox holds no pixel of its segment.
    """
    if not subjects:
        return []
    left, top = (min(subject.bbox[i] for subject in subjects) for i in (0, 1))
    right, bottom = (max(subject.bbox[i] for subject in subjects) for i in (2, 3))
    if background is None:
        # One background for the whole image; only the part behind the subjects is drawn.
        background = transforms.noise(rng, bottom - top, right - left)
    else:
        background = background[top:bottom, left:right]
    crops = []
    for subject in subjects:
        x1, y1, x2, y2 = subject.bbox
        is_subject = _inside(segment_map, subject, name)
        behind = background[y1 - top : y2 - top, x1 - left : x2 - left]
        # Repeated per channel, which is twice as fast as broadcasting over an axis of three.
        is_subject = np.repeat(is_subject, 3, axis=1).reshape(behind.shape)
        crops.append(np.where(is_subject, image[y1:y2, x1:x2], behind))
    return crops


def portrait(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: UInt8[np.ndarray, "h w"],
    subject: Segment,
    name: str,
    rng: np.random.Generator,
    backdrop: Backdrop,
) -> UInt8[np.ndarray, "r r 3"]:
    """Places a subject at the bottom of a square backdrop, with a margin, like a portrait.

    An image encoder that is trained from scratch on crops in noise alone takes the background of a
    photograph for a part of the subject.

    Args:
        image: Image of the item.
        segment_map: Segment map of the item.
        subject: Segment whose bbox lies within the image.
        name: Id of the item, for errors.
        rng: Generator of backdrop and position.
        backdrop: Function that draws the backdrop.

    Raises:
        DataError: The bbox holds no pixel of its segment.
    """
    is_subject = _inside(segment_map, subject, name)
    height, width = is_subject.shape
    side = round(max(height, width) * rng.uniform(1, _MAX_MARGIN))
    left = round((side - width) * rng.uniform(0.3, 0.7))
    pixels = backdrop(rng, side)
    behind = pixels[side - height :, left : left + width]
    x1, y1, x2, y2 = subject.bbox
    behind[is_subject] = image[y1:y2, x1:x2][is_subject]
    return pixels


def _inside(
    segment_map: UInt8[np.ndarray, "h w"], subject: Segment, name: str
) -> Bool[np.ndarray, "h2 w2"]:
    """Returns a mask of the subject's pixels in its bbox."""
    x1, y1, x2, y2 = subject.bbox
    is_subject = segment_map[y1:y2, x1:x2] == subject.id
    if not is_subject.any():
        raise DataError(
            f"item {name}: the bbox {list(subject.bbox)} of segment {subject.id} holds no "
            f"pixel of value {subject.id} in the segment map, expected some"
        )
    return is_subject
