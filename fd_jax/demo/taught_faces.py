"""Faces of portraits with a recognizer's embeddings of them, for an image encoder to learn from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from fd_jax.data.ffhq.folder import Split
from fd_jax.data.prepare.faces import Face, find_faces, opencv
from fd_jax.demo.portraits import People
from fd_jax.errors import InputError
from fd_jax.faces.recognizers import Recognizer, unit

SIDE = 128  # of the cut-outs
MIN_FACES = 2
_CANVAS = 256
_EYES, _BETWEEN = (128, 110), 52  # middle of the eyes and distance between them, on the canvas
_MIN_SCORE = 0.5
# Half axes of the ellipse within which two faces are averaged, on the canvas.
_ELLIPSE = 58, 76

Cutouts = UInt8[np.ndarray, "n 128 128 4"]


class TaughtFaces(NamedTuple):
    """Faces of one split, and those that two of them give in the middle.

    Attributes:
        cutouts: RGB and mask, eyes at one place and distance.
        embeds: The recognizer's embeddings, of length 1.
        is_average: Which faces are averages of two.
    """

    cutouts: Cutouts
    embeds: Float[np.ndarray, "n d"]
    is_average: Bool[np.ndarray, " n"]


def teach(
    roots: list[Path], split: Split, recognizer: Recognizer, num_averages: int, seed: int = 0
) -> TaughtFaces:
    """Embeds the people of portraits, and averages of two faces.

    A few hundred people are few embeddings; an average of two faces with one's hair and clothes is
    a plausible face more, of which the recognizer knows the embedding as well.

    Args:
        roots: Folders in the layout of FFHQ-FastComposer.
        split: Split of them.
        recognizer: Teacher.
        num_averages: Pairs to average. Those of different nouns are left out.
        seed: Seed of the pairs.

    Raises:
        InputError: A folder cannot be used, or there are fewer than two faces.
    """
    people = People(roots, split)
    large: list[tuple[np.ndarray, np.ndarray, str]] = []
    small: list[np.ndarray] = []
    embeds: list[np.ndarray] = []
    for person in tqdm(people.people, f"{split} faces", unit=" faces"):
        cutout = people.cut(person)
        if (face := _largest(cutout.pixels)) is None:
            continue
        embed = recognizer(cutout.pixels, face)
        mirrored = np.ascontiguousarray(cutout.pixels[:, ::-1])
        if (other := _largest(mirrored)) is not None:
            embed = embed + recognizer(mirrored, other)
        pixels, mask = _on_canvas(cutout.pixels, cutout.is_person, face)
        large.append((pixels, mask, cutout.noun))
        small.append(_reduced(pixels, mask))
        embeds.append(unit(embed))
    if len(large) < MIN_FACES:
        raise InputError(
            f"{' and '.join(map(str, roots))}: {len(large)} faces in split {split!r}, expected at "
            f"least {MIN_FACES}"
        )
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(num_averages), f"{split} averages", unit=" pairs"):
        (first, mask, noun), (second, _, other_noun) = (
            large[i] for i in rng.choice(len(large), 2, replace=False)
        )
        share = rng.uniform(0.35, 0.65)
        if noun != other_noun:
            continue
        pixels = _average(first, second, share)
        if (face := _largest(pixels)) is not None:
            small.append(_reduced(pixels, mask))
            embeds.append(recognizer(pixels, face))
    return TaughtFaces(np.stack(small), np.stack(embeds), np.arange(len(small)) >= len(large))


def _largest(pixels: np.ndarray) -> Face | None:
    faces = find_faces(pixels, _MIN_SCORE)
    return max(faces, key=lambda face: face.height * face.width, default=None)


def _on_canvas(
    pixels: UInt8[np.ndarray, "h w 3"], is_person: Bool[np.ndarray, "h w"], face: Face
) -> tuple[UInt8[np.ndarray, "256 256 3"], UInt8[np.ndarray, "256 256"]]:
    """Turns and scales a person so that the eyes are level and at one place."""
    cv2 = opencv()
    right, left = np.array(face.landmarks[:4]).reshape(2, 2)
    distance = np.hypot(*(left - right))
    cosine, sine = (left - right) / distance
    turn = _BETWEEN / distance * np.array([[cosine, sine], [-sine, cosine]])
    matrix = np.hstack([turn, (np.array(_EYES) - turn @ (right + left) / 2)[:, None]])
    size = _CANVAS, _CANVAS
    return (
        cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE),
        cv2.warpAffine(is_person.astype(np.uint8) * 255, matrix, size),
    )


def _reduced(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    both = np.concatenate([pixels, mask[..., None]], axis=-1)
    return cv2.resize(both, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _average(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """Returns the first person with a face between both."""
    y, x = np.mgrid[:_CANVAS, :_CANVAS]
    away = np.hypot((x - _EYES[0]) / _ELLIPSE[0], (y - _CANVAS / 2) / _ELLIPSE[1])
    inner = np.clip(1.6 - 1.2 * away, 0, 1)[..., None]
    both = share * first + (1 - share) * second.astype(np.float32)
    return (inner * both + (1 - inner) * first).astype(np.uint8)
