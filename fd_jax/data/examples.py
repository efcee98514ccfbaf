"""From an item as it is stored to the arrays that a training step takes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8

from fd_jax.data import transforms
from fd_jax.data.captions import MAX_TOKENS, PromptError, Tokenizer, mark_subjects, tokenize
from fd_jax.data.ffhq.folder import Record
from fd_jax.data.ffhq.record import DataError, Segment, decode_image, decode_map
from fd_jax.data.latent_cache import Encodings
from fd_jax.demo.painters import backdrop

Crops = Literal["noise", "portrait"]

_MOST_ROOM = 1.3  # side of a portrait, in longer sides of its subject


class Example(NamedTuple):
    """One training example, or a batch of them with a leading axis. Absent subjects are 0."""

    image: UInt8[np.ndarray, "h w 3"] | None  # None where there are encodings
    segment_map: UInt8[np.ndarray, "h w"]  # all 0 where there is no room for subjects
    subject_pixels: UInt8[np.ndarray, "s r r 3"]
    subject_ids: UInt8[np.ndarray, " s"]  # each subject's value in the segment map
    input_ids: Int32[np.ndarray, "77"]
    subject_token_index: Int32[np.ndarray, " s"]
    has_subject: Bool[np.ndarray, " s"]
    index: Int32[np.ndarray, ""]  # the item's number in the source
    # As encodings are stored: float32, or the bits of bfloat16 as uint16.
    moments: Shaped[np.ndarray, "h2 w2 8"] | None = None  # of the image
    text: Shaped[np.ndarray, "77 d"] | None = None  # of input_ids


@runtime_checkable
class ExampleConfig(Protocol):
    """The part of `DataConfig` that an example depends on."""

    resolution: int
    subject_resolution: int
    max_subjects: int
    caption_drop_prob: float
    subject_keep_prob: float
    object_types: tuple[str, ...]
    augment: bool
    crops: Crops
    flip: bool


def make_example(
    record: Record,
    config: ExampleConfig,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    training: bool,
    background: UInt8[np.ndarray, "rows columns 3"] | None = None,
    encodings: Encodings | None = None,
) -> Example:
    """Decodes an item and draws what of it is learnt this time.

    Subjects whose word lies beyond the 77 tokens are left out, as is the second of two whose noun
    phrases end in the same place.

    Args:
        record: The item.
        config: Sizes and probabilities.
        tokenizer: A CLIP tokenizer.
        rng: All that is random is drawn from it.
        training: Whether captions and subjects are dropped, images mirrored and crops augmented
            at all.
        background: What surrounds the subjects in their crops, by the image's coordinates and at
            least of its size; noise by default.
        encodings: What takes the place of the image; it is drawn the same as without.

    Raises:
        DataError: The item cannot be used. The message names it.
    """
    image = None
    if encodings is None or config.max_subjects:
        image = decode_image(record.image, record.id)
    for segment in record.segments:
        if image is not None:
            check_box(segment, record, *image.shape[:2])
        check_words(segment, record)
    caption, subjects = _draw_caption(record, config, rng, training)
    flip = training and config.flip and bool(rng.random() < 0.5)
    subjects = _with_own_words(caption, subjects, tokenizer)
    try:
        marked = mark_subjects(caption, [subject.end for subject in subjects])
        tokens = tokenize(tokenizer, marked)
    except PromptError as error:
        raise DataError(f"item {record.id}: {error}") from error

    room, side = config.max_subjects, config.subject_resolution
    pixels = np.zeros((room, side, side, 3), np.uint8)
    ids = np.zeros(room, np.uint8)
    fitted_map = np.zeros((config.resolution, config.resolution), np.uint8)
    if room:
        segment_map = decode_map(record.segment_map, record.id, *image.shape[:2])
        fitted_map = transforms.fit_map(segment_map, config.resolution, flip=flip)
        if config.crops == "portrait":
            crops = [portrait(image, segment_map, s, record.id, rng) for s in subjects]
        else:
            crops = subject_crops(image, segment_map, subjects, record.id, rng, background)
        for i, (subject, crop) in enumerate(zip(subjects, crops, strict=True)):
            augments = training and config.augment
            pixels[i] = _subject_pixels(crop, side, rng if augments else None)
            ids[i] = subject.id
    if encodings is None:
        seen = {"image": transforms.fit_image(image, config.resolution, flip=flip)}
    else:
        moments = encodings.moments(record.index, flip=flip)
        text = encodings.text(record, tokens.input_ids)
        seen = {"image": None, "moments": moments, "text": text}
    return Example(
        segment_map=fitted_map,
        subject_pixels=pixels,
        subject_ids=ids,
        input_ids=tokens.input_ids,
        subject_token_index=tokens.subject_token_index[:room],
        has_subject=tokens.has_subject[:room],
        index=np.asarray(record.index, np.int32),
        **seen,
    )


def check_box(segment: Segment, record: Record, height: int, width: int) -> None:
    """Raises DataError if a segment's value or box can be none of an image of this size."""
    if not 1 <= segment.id <= 255:
        raise DataError(f"item {record.id}: a segment has the id {segment.id}, expected 1..255")
    x1, y1, x2, y2 = segment.bbox
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise DataError(
            f"item {record.id}: bbox of segment {segment.id} is {list(segment.bbox)}, expected "
            f"0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
        )


def check_words(segment: Segment, record: Record) -> None:
    """Raises DataError if the words that name a segment lie outside of the caption."""
    if not 0 <= segment.start < segment.end <= len(record.caption):
        raise DataError(
            f"item {record.id}: segment {segment.id} is named by characters {segment.start} to "
            f"{segment.end} of the caption, expected 0 <= start < end <= {len(record.caption)}"
        )


def _draw_caption(
    record: Record, config: ExampleConfig, rng: np.random.Generator, training: bool
) -> tuple[str, list[Segment]]:
    """The caption and the segments that are subjects this time, in the caption's order."""
    subjects = [s for s in record.segments if s.coco_label in config.object_types]
    if training:
        if rng.random() < config.caption_drop_prob:
            return "", []
        subjects = [s for s in subjects if rng.random() < config.subject_keep_prob]
    if len(subjects) > config.max_subjects:
        chosen = np.arange(config.max_subjects)
        if training:
            chosen = rng.choice(len(subjects), config.max_subjects, replace=False)
        subjects = [subjects[i] for i in chosen]
    return record.caption, sorted(subjects, key=lambda subject: subject.end)


def _with_own_words(
    caption: str, subjects: Sequence[Segment], tokenizer: Tokenizer
) -> list[Segment]:
    """The subjects with a word within the 77 tokens that none before them has."""
    kept: list[Segment] = []
    begin = 0
    for subject in subjects:
        if caption[begin : subject.end].strip():
            kept.append(subject)
            begin = subject.end
    room = MAX_TOKENS - 2  # less start and end of text
    if len(caption.encode()) <= room:  # no token is shorter than a byte
        return kept
    tokens, begin = 0, 0
    for i, subject in enumerate(kept):
        piece = caption[begin : subject.end]
        tokens += len(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
        if tokens > room:
            return kept[:i]
        begin = subject.end
    return kept


def subject_crops(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: UInt8[np.ndarray, "h w"],
    subjects: Sequence[Segment],
    name: str,
    rng: np.random.Generator,
    background: UInt8[np.ndarray, "rows columns 3"] | None,
) -> list[np.ndarray]:
    """Returns each subject's box, with the background wherever its segment is not.

    Args:
        image: The image of the item.
        segment_map: Its segment map.
        subjects: Segments whose boxes lie within the image.
        name: The id of the item.
        rng: What noise is drawn from.
        background: As in `make_example`.

    Raises:
        DataError: A box holds nothing of its segment.
    """
    if not subjects:
        return []
    left, top = (min(subject.bbox[i] for subject in subjects) for i in (0, 1))
    right, bottom = (max(subject.bbox[i] for subject in subjects) for i in (2, 3))
    if background is None:
        # One background for the whole image, of which no more is drawn than is seen.
        background = transforms.noise(rng, bottom - top, right - left)
    else:
        background = background[top:bottom, left:right]
    crops = []
    for subject in subjects:
        x1, y1, x2, y2 = subject.bbox
        is_subject = _inside(segment_map, subject, name)
        behind = background[y1 - top : y2 - top, x1 - left : x2 - left]
        # Once per channel: twice as fast as broadcasting over an axis of three.
        is_subject = np.repeat(is_subject, 3, axis=1).reshape(behind.shape)
        crops.append(np.where(is_subject, image[y1:y2, x1:x2], behind))
    return crops


def portrait(
    image: UInt8[np.ndarray, "h w 3"],
    segment_map: UInt8[np.ndarray, "h w"],
    subject: Segment,
    name: str,
    rng: np.random.Generator,
) -> UInt8[np.ndarray, "r r 3"]:
    """Returns a square like a photograph of the subject: standing below, with some room around.

    An image encoder that is trained from scratch, on crops in noise alone, takes the background of
    a photograph for a part of the subject.

    Args:
        image: The image of the item.
        segment_map: Its segment map.
        subject: A segment whose box lies within the image.
        name: The id of the item.
        rng: What backdrop and place are drawn from.

    Raises:
        DataError: The box holds nothing of its segment.
    """
    is_subject = _inside(segment_map, subject, name)
    height, width = is_subject.shape
    side = round(max(height, width) * rng.uniform(1, _MOST_ROOM))
    left = round((side - width) * rng.uniform(0.3, 0.7))
    pixels = backdrop(rng, side)
    where = pixels[side - height :, left : left + width]
    x1, y1, x2, y2 = subject.bbox
    where[is_subject] = image[y1:y2, x1:x2][is_subject]
    return pixels


def _inside(
    segment_map: UInt8[np.ndarray, "h w"], subject: Segment, name: str
) -> Bool[np.ndarray, "h2 w2"]:
    """Which pixels of its box are the subject's."""
    x1, y1, x2, y2 = subject.bbox
    is_subject = segment_map[y1:y2, x1:x2] == subject.id
    if not is_subject.any():
        raise DataError(
            f"item {name}: the bbox {list(subject.bbox)} of segment {subject.id} holds no "
            f"pixel of value {subject.id} in the segment map, expected some"
        )
    return is_subject


def _subject_pixels(
    crop: UInt8[np.ndarray, "h w 3"], side: int, rng: np.random.Generator | None
) -> UInt8[np.ndarray, "r r 3"]:
    """A crop as a square of this side, augmented if there is a generator."""
    if rng is None:
        return transforms.pad_and_resize(crop, side)
    if rng.random() < 0.5:
        # FastComposer enlarges the crop before it cuts, which the resize takes back.
        crop = transforms.top_square(crop)
    return transforms.augment(transforms.pad_and_resize(crop, side), rng)
