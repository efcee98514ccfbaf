"""Cuts photographs of references to head and shoulders and removes the background."""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fd_jax.data import transforms
from fd_jax.data.prepare.faces import Face, find_faces
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.data.prepare.masks import people_map, segment_people

# Of photographs of 512 pixels with faces of 70, made of the bundled people, the bundled image
# encoder recognized 12 % as they were, 62 % cut to this square, and 75 % with noise behind.
_SIDE, _ABOVE = 2.3, 0.5  # side of the square, and its part above the face, in heights of the face
_PORTRAIT = 3.0  # longer side of a photograph that is head and shoulders, in heights of its face
_OTHER = 0.4  # of the largest face's height, below which a face is a bystander's

Pixels = UInt8[np.ndarray, "_ _ 3"]


class ReferenceCrop(NamedTuple):
    """A photograph as the image encoder gets it."""

    pixels: Pixels
    note: str  # what the user should know; empty if it is as expected


def has_detector() -> bool:
    """Whether OpenCV is installed, which finds faces."""
    return importlib.util.find_spec("cv2") is not None


def crop_reference(photograph: Pixels, *, always: bool = False) -> ReferenceCrop:
    """Cuts a photograph to the head and shoulders of its largest face, with noise behind them.

    The noise is that of training, where all but the subject is uniform noise. A photograph without
    a face stays as it is.

    Args:
        photograph: RGB.
        always: Whether to cut a photograph that is head and shoulders of one person already.

    Raises:
        InputError: OpenCV is missing.
    """
    faces = find_faces(photograph)
    if not faces:
        return ReferenceCrop(photograph, "no face is found; it is taken as it is")
    taken = max(faces, key=lambda face: face.height * face.width)
    faces = [face for face in faces if face.height >= _OTHER * taken.height]
    is_portrait = max(photograph.shape[:2]) <= _PORTRAIT * taken.height
    if len(faces) == 1 and is_portrait and not always:
        return ReferenceCrop(photograph, "")
    crop = crop_face(photograph, taken, faces)
    if len(faces) == 1:
        return crop
    x, y = round(taken.middle), (taken.box[1] + taken.box[3]) // 2
    which = f"of {len(faces)} faces the largest is taken, at x {x}, y {y}"
    return crop._replace(note="; ".join(filter(None, (which, crop.note))))


def crop_face(photograph: Pixels, taken: Face, faces: Sequence[Face]) -> ReferenceCrop:
    """Cuts out head and shoulders of one face, with noise behind the person.

    Args:
        photograph: RGB.
        taken: The face.
        faces: All faces of people, whose pixels become noise as well.
    """
    square = _square(taken, *photograph.shape[:2])
    faces = [taken, *(face for face in faces if face is not taken)]
    try:
        return ReferenceCrop(_with_noise(photograph, square, faces), "")
    except LeftOut as reason:
        x1, y1, x2, y2 = square
        return ReferenceCrop(photograph[y1:y2, x1:x2], f"the background is kept: {reason}")


def _square(face: Face, height: int, width: int) -> tuple[int, int, int, int]:
    """Returns x1, y1, x2, y2 of head and shoulders, as far as they are in the photograph."""
    left = face.middle - _SIDE / 2 * face.height
    top = face.box[1] - _ABOVE * face.height
    side = _SIDE * face.height
    return (
        max(round(left), 0),
        max(round(top), 0),
        min(round(left + side), width),
        min(round(top + side), height),
    )


def _with_noise(
    photograph: Pixels, square: tuple[int, int, int, int], faces: Sequence[Face]
) -> Pixels:
    """Returns the square with noise around the first face's person. Raises LeftOut."""
    x1, y1, x2, y2 = square
    cut = np.ascontiguousarray(photograph[y1:y2, x1:x2])
    inside = []
    for face in faces:
        left, top, right, bottom = face.box
        box = max(left - x1, 0), max(top - y1, 0), min(right, x2) - x1, min(bottom, y2) - y1
        if box[0] < box[2] and box[1] < box[3]:
            inside.append(face._replace(box=box))
    is_subject = people_map(cut, segment_people(cut), inside)[..., None] == 1
    noise = transforms.noise(np.random.default_rng(0), *cut.shape[:2])
    return np.where(is_subject, cut, noise)
