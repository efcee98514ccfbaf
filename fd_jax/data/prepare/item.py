"""Makes an item of a training set from one photograph. Runs in processes of its own."""

import base64
import dataclasses
import io
import json
import os
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fd_jax.config import Config, Range
from fd_jax.data.ffhq.folder import MAX_BYTES, item_path
from fd_jax.data.ffhq.record import MAX_ASPECT
from fd_jax.data.photographs import PhotographError, load_photograph
from fd_jax.data.prepare.bind import Binding, bind
from fd_jax.data.prepare.faces import Face, find_faces, opencv, sharpness
from fd_jax.data.prepare.left_out import LeftOut, Reason
from fd_jax.data.prepare.masks import people_map, read_mask, segment_people
from fd_jax.data.prepare.phrases import find_phrases
from fd_jax.errors import OutputError
from fd_jax.files import atomic_file

_THUMBNAIL = 16  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemConfig(Config):
    """How photographs become items, and which are left out.

    Attributes:
        size: Shorter side of the images written, in pixels; smaller photographs keep theirs, and
            with 0 all do.
        min_side: Shorter side below which a photograph is left out, in pixels.
        min_face: Height below which a named person's face is too small, in pixels of the image
            written.
        min_score: Score of the detector below which a face is none.
        min_sharpness: Sharpness of a face below which a photograph is blurred; 0 keeps all.
        nouns: More words that name a person, such as a proper name.
        quality: Quality of the JPEG files.
    """

    size: Annotated[int, Range(0, 4096)] = 512
    min_side: Annotated[int, Range(16)] = 128
    min_face: Annotated[int, Range(8)] = 32
    min_score: Annotated[float, Range(0, 1)] = 0.8
    min_sharpness: Annotated[float, Range(0)] = 0.02
    nouns: tuple[str, ...] = ()
    quality: Annotated[int, Range(1, 100)] = 95


class Task(NamedTuple):
    """A photograph to make an item of."""

    name: str  # relative to the folder of photographs
    path: Path
    id: str
    caption: str
    mask: Path | None


class Result(NamedTuple):
    """What became of a photograph."""

    name: str
    id: str
    reason: Reason | None = None  # why it is left out; None if it is written
    detail: str = ""
    notes: tuple[str, ...] = ()
    people: int = 0  # segments
    last_word: int = 0  # where the last phrase ends in the caption
    thumbnail: str = ""  # 16 x 16 grey levels in base64
    copy_of: str = ""  # the photograph that a duplicate looks like


class _Item(NamedTuple):
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]
    binding: Binding


def make_item(task: Task, config: ItemConfig, out: Path) -> Result:
    """Writes the files of an item, or says why the photograph is left out.

    Raises:
        OutputError: A file cannot be written.
    """
    try:
        item = _examine(task, config)
    except LeftOut as problem:
        return Result(task.name, task.id, problem.reason, problem.detail)
    segment_map, segments = _segments(item)
    info = {"caption": task.caption, "segments": segments}
    content = {
        ".jpg": _jpeg(item.image, config.quality),
        ".npy": _npy(segment_map),
        ".json": json.dumps(info, ensure_ascii=False).encode(),
    }
    for suffix, data in content.items():
        write_whole(item_path(out, task.id, suffix), data)
    return Result(
        task.name,
        task.id,
        notes=tuple(item.binding.notes),
        people=len(segments),
        last_word=max(segment["end"] for segment in segments),
        thumbnail=_thumbnail(item.image),
    )


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under its name once it is complete. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


def _examine(task: Task, config: ItemConfig) -> _Item:
    if not find_phrases(task.caption, config.nouns):
        raise LeftOut("names nobody", f"no noun of {task.caption!r:.200} is known to name a person")
    photograph = _read(task.path)
    height, width = photograph.shape[:2]
    if min(height, width) < config.min_side or max(height, width) > MAX_ASPECT * min(height, width):
        raise LeftOut(
            "bad size",
            f"{width} x {height} pixels, expected sides of {config.min_side} or more, one at most "
            f"{MAX_ASPECT} times the other",
        )
    image = _resized(photograph, config.size)
    faces = find_faces(image, config.min_score)
    if not faces:
        raise LeftOut("no face", f"no face with a score of {config.min_score} or more")
    binding = bind(task.caption, faces, config.nouns)
    for _, i in binding.bound:
        _check_face(image, binding.faces[i], config)
    if task.mask is None:
        people = segment_people(image)
    else:
        people = read_mask(task.mask, height, width)
        size = image.shape[1::-1]
        people = opencv().resize(people, size, interpolation=opencv().INTER_NEAREST)
    return _Item(image, people_map(image, people, binding.faces), binding)


def _read(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise LeftOut("unreadable", f"{size} bytes, expected {MAX_BYTES} at most")
            if not (content := file.read()):
                raise LeftOut("unreadable", "the file is empty")
        return load_photograph(content)
    except (OSError, MemoryError) as error:
        raise LeftOut("unreadable", f"the file cannot be read: {error}") from error
    except PhotographError as error:
        raise LeftOut("unreadable", str(error)) from error


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    scale = size / min(image.shape[:2])
    if not 0 < scale < 1:
        return image
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    return opencv().resize(image, (width, height), interpolation=opencv().INTER_AREA)


def _check_face(image: UInt8[np.ndarray, "h w 3"], face: Face, config: ItemConfig) -> None:
    if face.height < config.min_face:
        raise LeftOut(
            "face too small", f"{face.height} pixels high, expected {config.min_face} or more"
        )
    if (found := sharpness(image, face)) < config.min_sharpness:
        raise LeftOut(
            "blurred", f"a face's sharpness is {found:.4f}, expected {config.min_sharpness} or more"
        )


def _segments(item: _Item) -> tuple[UInt8[np.ndarray, "h w"], list[dict[str, Any]]]:
    """The segment map, named people first, and what the JSON file says of them."""
    people = [face for _, face in item.binding.bound]
    people += [face for face in range(len(item.binding.faces)) if face not in people]
    values = np.zeros(len(people) + 1, np.uint8)
    values[np.array(people) + 1] = np.arange(1, len(people) + 1)
    segment_map = values[item.labels]
    segments = []
    for number, (phrase, i) in enumerate(item.binding.bound, 1):
        rows, columns = (np.flatnonzero((segment_map == number).any(axis)) for axis in (1, 0))
        face = item.binding.faces[i]
        segments.append(
            {
                "id": number,
                "word": phrase.noun,
                "start": phrase.start,
                "end": phrase.end,
                "bbox": [int(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)],
                "coco_label": "person",
                "score": round(face.score, 4),
                "face": list(face.box),
            }
        )
    return segment_map, segments


def _jpeg(image: UInt8[np.ndarray, "h w 3"], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _thumbnail(image: UInt8[np.ndarray, "h w 3"]) -> str:
    cv2 = opencv()
    small = cv2.resize(image, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return base64.b64encode(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).tobytes()).decode()
