"""Finds the pixels of people with MediaPipe's selfie segmentation, and splits them by faces."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fd_jax.assets import JUDGES
from fd_jax.data.ffhq.folder import read_file
from fd_jax.data.ffhq.record import DataError, decode_map
from fd_jax.data.prepare.faces import Face, opencv
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.images.opening import open_image

SELFIE = JUDGES / "selfie_segmentation.tflite"
MASK_SUFFIXES = (".png", ".npy")

LEAST, MOST = 0.005, 0.97  # of an image's pixels that a person's mask may have
_SIDE = 256  # in which the network sees images, and in which people are split
_LAST_LAYER = "segment"
_CERTAIN = 0.55  # a pixel this many times nearer to one face than to the next is that person's
_FACE_INSIDE = 0.5  # of a face's pixels that lie in its mask, at least

Labels = UInt8[np.ndarray, "h w"]  # 0 background, i + 1 the person of face i


def segment_people(image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Returns which pixels of an RGB image show people."""
    cv2 = opencv()
    network, features_name, kernel, bias = _network()
    network.setInput(cv2.dnn.blobFromImage(image, 1 / 255, (_SIDE, _SIDE)))
    [features] = network.forward(features_name)
    # The last layer, a transposed convolution by blocks of 2 x 2, is a matrix product. OpenCV 5
    # takes twice as long for it as for all the others.
    half = _SIDE // 2
    # Not `@`, whose threads would wait for one another on busy cores.
    blocks = np.einsum("kc,cn->kn", kernel, features.reshape(len(features), -1))
    blocks = blocks.reshape(2, 2, half, half)
    logits = blocks.transpose(2, 0, 3, 1).reshape(_SIDE, _SIDE) + bias
    probability = 1 / (1 + np.exp(-logits.clip(-30, 30)))
    return cv2.resize(probability, image.shape[1::-1]) > 0.5


def people_map(
    image: UInt8[np.ndarray, "h w 3"],
    people: Bool[np.ndarray, "h w"] | Labels,
    faces: Sequence[Face],
) -> Labels:
    """Returns the map in which the person of face i has the value i + 1.

    Args:
        image: RGB.
        people: The pixels of all people, which are split by their faces, or a map with a value of
            its own for each person.
        faces: One face of each person, at least one.

    Raises:
        LeftOut: A person has no pixel, or all of them; or a mask misses its face, or has two.
    """
    if people.dtype == bool or len(np.unique(people[people > 0])) <= 1:
        labels = _split(image, _with_faces(people > 0, faces), faces)
    else:
        labels = _labels_of_faces(people, faces)
    for i, face in enumerate(faces):
        _check(labels == i + 1, face, i, len(faces))
    return labels


def find_mask(folder: Path, photograph: Path) -> Path | None:
    """Returns the given mask of a photograph: the same relative path, as PNG or npy."""
    for suffix in MASK_SUFFIXES:
        for name in (photograph.with_suffix(suffix), Path(f"{photograph}{suffix}")):
            if (folder / name).is_file():
                return folder / name
    return None


def read_mask(path: Path, height: int, width: int) -> UInt8[np.ndarray, "h w"]:
    """Returns a given mask: 0 background, one value for all people or one for each.

    Args:
        path: PNG (grey, palette or black and white) or npy (uint8).
        height: Height of the upright photograph in pixels, which the mask must have, too.
        width: Its width.

    Raises:
        LeftOut: The file cannot be read, or is of another size.
    """
    try:
        content = read_file(path)
        if content.startswith(b"\x89PNG"):
            content = _as_npy(content)
        return decode_map(content, path.name, height, width)
    except (DataError, OSError, SyntaxError, ValueError) as error:
        raise LeftOut("bad mask", f"mask {path.name}: {error}") from error


def _as_npy(content: bytes) -> bytes:
    with open_image(io.BytesIO(content), formats=("PNG",)) as image:
        if image.mode not in ("1", "L", "P"):
            raise ValueError(f"it is a PNG of mode {image.mode}, expected 1, L or P")
        stream = io.BytesIO()
        np.save(stream, np.asarray(image).astype(np.uint8))
        return stream.getvalue()


@functools.cache
def _network() -> tuple[Any, str, Float[np.ndarray, "4 c"], float]:
    """The network, its last layer but one, and kernel and bias of the last."""
    dnn = opencv().dnn
    # OpenCV 5's new engine would run the last layer too.
    engine = (dnn.ENGINE_CLASSIC,) if hasattr(dnn, "ENGINE_CLASSIC") else ()
    network = dnn.readNetFromTFLite(str(SELFIE), *engine)
    names = network.getLayerNames()
    kernel, bias = network.getLayer(_LAST_LAYER).blobs
    before = names[names.index(_LAST_LAYER) - 1]
    return network, before, kernel.reshape(len(kernel), -1).T, float(bias.ravel()[0])


def _with_faces(people: Bool[np.ndarray, "h w"], faces: Sequence[Face]) -> Bool[np.ndarray, "h w"]:
    """Only the connected parts that hold some of a face: others are nobody of these people."""
    _, parts = opencv().connectedComponents(people.astype(np.uint8), connectivity=4)
    kept = np.zeros(parts.max() + 1, bool)
    for face in faces:
        x1, y1, x2, y2 = face.box
        kept[np.unique(parts[y1:y2, x1:x2])] = True
    kept[0] = False
    return kept[parts]


def _split(
    image: UInt8[np.ndarray, "h w 3"], people: Bool[np.ndarray, "h w"], faces: Sequence[Face]
) -> Labels:
    """Gives each pixel to a person: near a face to its own, between faces along edges."""
    if len(faces) == 1:
        return people.astype(np.uint8)
    cv2 = opencv()
    height, width = people.shape
    scale = min(_SIDE / max(height, width), 1)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    inside = cv2.resize(people.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    distances = _distances(size, scale, faces)
    nearest = distances.argmin(axis=0) + 1
    first, second = np.sort(distances, axis=0)[:2]
    background = len(faces) + 1
    seeds = np.where(inside & (first <= _CERTAIN * second), nearest, 0).astype(np.int32)
    seeds[~inside] = background
    flooded = cv2.watershed(np.ascontiguousarray(small), seeds)
    # The lines between two basins are -1.
    is_person = (flooded > 0) & (flooded < background)
    labels = np.where(is_person, flooded, nearest).astype(np.uint8)
    labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.where(people, labels, 0).astype(np.uint8)


def _distances(
    size: tuple[int, int], scale: float, faces: Sequence[Face]
) -> Float[np.ndarray, "n h w"]:
    """From the middle of each face to each pixel, in widths and heights of that face."""
    x = np.arange(size[0], dtype=np.float32)[None, :]
    y = np.arange(size[1], dtype=np.float32)[:, None]
    distances = []
    for face in faces:
        x1, y1, x2, y2 = (value * scale for value in face.box)
        distances.append(np.hypot((x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1)))
    return np.stack(distances)


def _labels_of_faces(people: UInt8[np.ndarray, "h w"], faces: Sequence[Face]) -> Labels:
    labels = np.zeros_like(people)
    owners: dict[int, int] = {}
    for i, face in enumerate(faces):
        x1, y1, x2, y2 = face.box
        values = people[y1:y2, x1:x2]
        counts = np.bincount(values[values > 0], minlength=2)
        value = int(counts.argmax())
        if not counts[value]:
            raise LeftOut("mask misses face", f"the given mask is 0 in the box {list(face.box)}")
        if value in owners:
            raise LeftOut("bad mask", f"value {value} of the given mask has two faces")
        owners[value] = i
        labels[people == value] = i + 1
    return labels


def _check(mask: Bool[np.ndarray, "h w"], face: Face, number: int, count: int) -> None:
    who = f"person {number + 1} of {count} from the left"
    share = float(mask.mean())
    if share < LEAST:
        raise LeftOut("mask empty", f"{who}: {share:.1%} of the pixels, expected {LEAST:.1%}")
    if share > MOST:
        raise LeftOut("mask everything", f"{who}: {share:.0%} of the pixels, expected {MOST:.0%}")
    x1, y1, x2, y2 = face.box
    inside = float(mask[y1:y2, x1:x2].mean())
    if inside < _FACE_INSIDE:
        raise LeftOut("mask misses face", f"{who}: {inside:.0%} of the face is in the mask")
