"""Checks that every item of a folder can be trained on."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from fd_jax import files
from fd_jax.data.captions import SUBJECT_MARKER
from fd_jax.data.ffhq.folder import (
    ID_FILES,
    SUFFIXES,
    absent_files,
    all_ids,
    distinct,
    item_path,
    read_file,
)
from fd_jax.data.ffhq.page import draw_page
from fd_jax.data.ffhq.record import (
    DataError,
    Record,
    check_box,
    check_words,
    decode_image,
    decode_map,
    read_info,
)
from fd_jax.images.png import write_png

# Problems that training tolerates: it binds a subject to a worse word, or leaves it out.
TOLERATED = ("words", "same words")

_THREADS = 8
_NUM_EXAMPLES = 8  # items on a page

Item, Result = TypeVar("Item"), TypeVar("Result")


class Problem(NamedTuple):
    """A defect of an item."""

    kind: str  # category that is counted
    text: str


def check_folder(root: Path, page: Path | None = None) -> bool:
    """Examines every item that an id file names, prints the defects, and draws a page.

    Args:
        root: Folder in the layout of FFHQ-FastComposer.
        page: PNG file for images, segments, captions and crops of some items; replaced if it
            exists.

    Returns:
        Whether no item has a defect.

    Raises:
        DataError: There is no id file, or one cannot be read.
        InputError: The folder is in a bucket.
        OutputError: The page cannot be written.
    """
    root = files.local_path(root)
    lists = all_ids(root)
    if page is not None:
        files.check_folder(files.local_path(page).parent)
    broken: collections.Counter[str] = collections.Counter()
    kinds: collections.Counter[str] = collections.Counter()
    for split, ids in lists.items():
        for name, count in collections.Counter(ids).items():
            if count > 1:
                print(f"{name}: duplicate id: {ID_FILES[split]} has it {count} times")
                broken[name] += 1
                kinds["duplicate id"] += 1
    names = distinct(lists)
    absent = absent_files(root, names)
    usable = []
    examined = in_order(lambda name: examine(root, name, absent.get(name, ())), names)
    for name, (record, problems) in zip(names, tqdm(examined, total=len(names)), strict=True):
        for problem in problems:
            tqdm.write(f"{name}: {problem.kind}: {problem.text}")
            broken[name] += 1
            kinds[problem.kind] += 1
        if record is not None and not problems:
            usable.append(name)
    counted = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    print(f"{root}: {len(names)} items, {len(broken)} broken{f': {counted}' if broken else ''}")
    if page is not None and usable:
        chosen = dict.fromkeys(np.linspace(0, len(usable) - 1, _NUM_EXAMPLES).astype(int).tolist())
        records = [examine(root, usable[i])[0] for i in chosen]
        write_png(page, draw_page([r for r in records if r is not None]), {}, overwrite=True)
    return not broken


def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps a function over items in threads, at most a few items ahead of the consumer."""
    with ThreadPoolExecutor(_THREADS) as pool:
        ahead: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * _THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def examine(
    root: Path, name: str, absent: Sequence[Path] = ()
) -> tuple[Record | None, list[Problem]]:
    """Reads an item, or None if that fails, and lists its defects."""
    problems = [Problem("missing file", str(path)) for path in absent]
    if problems:
        return None, problems
    try:
        image_file, info, map_file = (
            read_file(item_path(root, name, suffix)) for suffix in SUFFIXES
        )
    except DataError as error:
        return None, [_problem("unreadable file", name, error)]

    image = segment_map = record = None
    try:
        image = decode_image(image_file, name)
        if not image_file.startswith(b"\xff\xd8"):
            problems.append(Problem("image", "it is no JPEG, whatever its name says"))
        segment_map = decode_map(map_file, name, *image.shape[:2])
    except DataError as error:
        problems.append(_problem("image" if image is None else "segment map", name, error))
    try:
        caption, segments = read_info(info, name)
        record = Record(0, name, image_file, map_file, caption, segments)
    except DataError as error:
        problems.append(_problem("JSON", name, error))
    if record is not None:
        problems += _problems_of_words(record)
        if image is not None:
            problems += _problems_of_boxes(record, segment_map, *image.shape[:2])
    return record, problems


def _problem(kind: str, name: str, error: DataError) -> Problem:
    return Problem(kind, str(error).removeprefix(f"item {name}: "))


def _problems_of_boxes(
    record: Record, segment_map: UInt8[np.ndarray, "h w"] | None, height: int, width: int
) -> Iterator[Problem]:
    for segment in record.segments:
        try:
            check_box(segment, record, height, width)
        except DataError as error:
            yield _problem("bbox", record.id, error)
            continue
        x1, y1, x2, y2 = segment.bbox
        if segment_map is not None and not (segment_map[y1:y2, x1:x2] == segment.id).any():
            where = "its bbox" if (segment_map == segment.id).any() else "the segment map"
            text = f"segment {segment.id}, a {segment.coco_label}, has no pixel in {where}"
            yield Problem("absent segment", text)


def _problems_of_words(record: Record) -> Iterator[Problem]:
    caption = record.caption
    if SUBJECT_MARKER in caption.lower():
        yield Problem("caption", f"{caption!r:.200} holds {SUBJECT_MARKER}")
    for segment in record.segments:
        try:
            check_words(segment, record)
        except DataError as error:
            yield _problem("offsets", record.id, error)
            continue
        before, after = caption[segment.end - 1], caption[segment.end : segment.end + 1]
        if not before.isalnum() or after.isalnum():
            words = f"{caption[segment.start : segment.end]!r} of segment {segment.id}"
            yield Problem("words", f"{words} do not end where a word does")
    ends = collections.Counter(segment.end for segment in record.segments)
    for end, count in ends.items():
        if count > 1:
            text = f"{count} segments are named by words that end at character {end}"
            yield Problem("same words", text)
