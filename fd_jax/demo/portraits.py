"""People of portraits with masks, cut out for composed scenes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from tqdm import tqdm

from fd_jax.data.ffhq.folder import Split
from fd_jax.data.ffhq.record import DataError, Segment, decode_image, decode_map
from fd_jax.data.ffhq.source import open_source
from fd_jax.errors import InputError

MIN_PEOPLE = 2
MIN_SHARE = 0.02  # smallest share of a photograph or picture that a person fills
_MIN_CHEST = 0.15  # smallest part of a body below the chin, in heights of the face
_MAX_CUT = 0.1  # longest part of a head that the sides of a photograph cut, in heights of the face
_THREADS = 2
_HOW_TO_MASK = (
    "A mask is a .npy of uint8 of the photograph's size, with the id of the person's segment where "
    "the person is; any segmentation of people makes one, such as MediaPipe's selfie segmentation"
)

Box = tuple[int, int, int, int]


class Cutout(NamedTuple):
    """A person without the background."""

    pixels: UInt8[np.ndarray, "h w 3"]
    is_person: Bool[np.ndarray, "h w"]
    noun: str  # the word for the person in captions
    face: Box | None = None  # x1, y1, x2, y2 in pixels of the cut-out, if the data has it


class Person(NamedTuple):
    """A person's segment of a photograph."""

    number: int  # of the item in its source
    segment: Segment


class People:
    """The people of one split of folders in the layout of FFHQ-FastComposer.

    A person with the box of a face is left out if a side of the photograph cuts through the head,
    or if the photograph ends right below the chin.

    Attributes:
        people: The people, in the order of the photographs.
        left_out: Number of people that are left out.

    Raises:
        InputError: There are fewer than two, a mask is missing, or nobody is found in a photograph.
    """

    def __init__(self, roots: list[Path], split: Split):
        try:
            self._source = open_source(roots, split)
        except DataError as error:
            raise DataError(f"{error}. {_HOW_TO_MASK}") from error
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(self._find, range(len(self._source)))
            bar = tqdm(
                found, f"{split} people", len(self._source), unit=" photographs", leave=False
            )
            groups = list(bar)
        self.people = [person for group in groups for person, is_whole in group if is_whole]
        self.left_out = sum(map(len, groups)) - len(self.people)
        if len(self.people) < MIN_PEOPLE:
            where = " and ".join(map(str, roots))
            raise InputError(
                f"{where}: {len(self.people)} people in split {split!r}, expected at least "
                f"{MIN_PEOPLE}; {self.left_out} more are cut through head or chin"
            )

    def _find(self, number: int) -> list[tuple[Person, bool]]:
        """Finds the people of a photograph, each with whether head and chest are whole."""
        record = self._source[number]
        with_label = [s for s in record.segments if s.coco_label == "person"]
        pixels = decode_image(record.image, record.id)
        segment_map = decode_map(record.segment_map, record.id, *pixels.shape[:2])
        found = [s for s in with_label if np.mean(segment_map == s.id) >= MIN_SHARE]
        if not found:
            ids = {s.id: float(np.mean(segment_map == s.id).round(4)) for s in with_label}
            raise DataError(
                f"item {record.id}: no person is found in the photograph: of its segments with "
                f"coco_label person, by id, the mask holds these shares: {ids}; expected one with "
                f"at least {MIN_SHARE}. {_HOW_TO_MASK}"
            )
        return [(Person(number, s), _is_whole(segment_map == s.id, s.face)) for s in found]

    def cut(self, person: Person) -> Cutout:
        """Returns a person, cut to the box of the mask, rounded where the photograph ends."""
        record = self._source[person.number]
        pixels = decode_image(record.image, record.id)
        segment_map = decode_map(record.segment_map, record.id, *pixels.shape[:2])
        is_person = segment_map == person.segment.id
        rows, columns = (np.flatnonzero(is_person.any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        box = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
        mask, face = _rounded(is_person[box]), person.segment.face
        if face is not None:
            face = (face[0] - left, face[1] - top, face[2] - left, face[3] - top)
            if top == 0:
                mask = _rounded_top(mask, face)
        words = record.caption[person.segment.start : person.segment.end].split()
        return Cutout(pixels[box], mask, words[-1] if words else "person", face)


def _is_whole(is_person: Bool[np.ndarray, "h w"], face: Box | None) -> bool:
    """Whether a photograph shows the whole width of a head, and some of the chest."""
    if face is None:
        return True
    height, chin = face[3] - face[1], max(face[3], 0)
    sides = is_person[:chin, [0, -1]].sum(axis=0)
    chest = np.flatnonzero(is_person.any(axis=1))[-1] + 1 - chin
    return bool(sides.max() <= _MAX_CUT * height and chest >= _MIN_CHEST * height)


def _rounded(is_person: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Slopes shoulders, which would end in mid-air where a photograph's side cuts them off."""
    height, width = is_person.shape
    up = np.arange(height)[::-1, None] / height
    across = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    return is_person & ((np.abs(across) ** 2.5 + (up / 0.85) ** 2 < 1) | (np.abs(across) < 0.6))


def _rounded_top(is_person: Bool[np.ndarray, "h w"], face: Box) -> Bool[np.ndarray, "h w"]:
    """Rounds hair that a photograph's top edge cuts square, above the middle of the face."""
    middle = max((face[1] + face[3]) // 2, 1)
    columns = np.flatnonzero(is_person[:middle].any(axis=0))
    centre, radius = (columns[0] + columns[-1]) / 2, (columns[-1] - columns[0] + 1) / 2
    up = np.maximum(middle - np.arange(len(is_person)), 0)[:, None] / middle
    across = (np.arange(is_person.shape[1])[None, :] - centre) / radius
    return is_person & ((up == 0) | (across**2 + up**2 <= 1))
