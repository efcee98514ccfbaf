"""Training examples: the arrays of a training step, made from a record."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Shaped, UInt8

from fd_jax.data import transforms
from fd_jax.data.captions import (
    MAX_TOKENS,
    PromptError,
    Tokenizer,
    split_caption,
    tokenize_pieces,
)
from fd_jax.data.config import DataConfig
from fd_jax.data.crops import Backdrop, portrait, subject_crops
from fd_jax.data.ffhq.record import (
    DataError,
    Record,
    Segment,
    check_box,
    check_words,
    decode_image,
    decode_map,
)
from fd_jax.data.latent_cache import LatentCache


class Example(NamedTuple):
    """One training example, or a batch of them with a leading axis. Absent subjects are 0."""

    image: UInt8[np.ndarray, "h w 3"] | None  # None if the latent cache replaces it
    segment_map: UInt8[np.ndarray, "h w"]  # all 0 if max_subjects is 0
    subject_pixels: UInt8[np.ndarray, "s r r 3"]
    subject_ids: UInt8[np.ndarray, " s"]  # each subject's value in the segment map
    input_ids: Int32[np.ndarray, "77"]
    subject_token_index: Int32[np.ndarray, " s"]
    has_subject: Bool[np.ndarray, " s"]
    index: Int32[np.ndarray, ""]  # the item's position in the source
    # As the latent cache stores them: float32, or bfloat16 as its bits in uint16.
    posterior: Shaped[np.ndarray, "h2 w2 8"] | None = None  # mean and log variance of the latents
    text: Shaped[np.ndarray, "77 d"] | None = None  # text embeddings of input_ids


def make_example(
    record: Record,
    config: DataConfig,
    tokenizer: Tokenizer,
    rng: np.random.Generator,
    *,
    training: bool,
    background: UInt8[np.ndarray, "rows columns 3"] | None = None,
    backdrop: Backdrop | None = None,
    latent_cache: LatentCache | None = None,
) -> Example:
    """Decodes an item and samples its caption, subjects and augmentation.

    A subject whose noun phrase ends beyond the 77 tokens is left out, as is the second of two
    subjects whose noun phrases end at the same character.

    Args:
        record: The item.
        config: Sizes and probabilities.
        tokenizer: CLIP tokenizer.
        rng: Generator of everything random.
        training: Whether captions and subjects are dropped, images mirrored and crops augmented.
        background: Pixels around subjects in their crops, in the image's coordinates and at least
            as large as the image; uniform noise by default.
        backdrop: Function that draws backdrops, if `config.crops` is "portrait".
        latent_cache: Posteriors and text embeddings to return in place of the image.

    Raises:
        DataError: The item cannot be used. The message names it.
    """
    image: Any = None  # read if there is no cache, or if subjects are cut out of it
    if latent_cache is None or config.max_subjects:
        image = decode_image(record.image, record.id)
    for segment in record.segments:
        if image is not None:
            check_box(segment, record, *image.shape[:2])
        check_words(segment, record)
    caption, subjects = _draw_caption(record, config, rng, training)
    flip = training and config.flip and bool(rng.random() < 0.5)
    subjects = _with_own_words(caption, subjects, tokenizer)
    try:
        pieces = split_caption(caption, [subject.end for subject in subjects])
        tokens = tokenize_pieces(tokenizer, pieces)
    except PromptError as error:
        raise DataError(f"item {record.id}: {error}") from error

    count = config.max_subjects
    side = config.subject_resolution
    pixels = np.zeros((count, side, side, 3), np.uint8)
    ids = np.zeros(count, np.uint8)
    fitted_map = np.zeros((config.resolution, config.resolution), np.uint8)
    if count:
        assert image is not None
        segment_map = decode_map(record.segment_map, record.id, *image.shape[:2])
        fitted_map = transforms.fit_map(segment_map, config.resolution, flip=flip)
        if config.crops == "portrait":
            if backdrop is None:
                raise DataError("crops is 'portrait' and there is no backdrop, expected a function")
            crops = [portrait(image, segment_map, s, record.id, rng, backdrop) for s in subjects]
        else:
            crops = subject_crops(image, segment_map, subjects, record.id, rng, background)
        for i, (subject, crop) in enumerate(zip(subjects, crops, strict=True)):
            augments = training and config.augment
            pixels[i] = _subject_pixels(crop, side, rng if augments else None)
            ids[i] = subject.id
    if latent_cache is None:
        assert image is not None
        content = {"image": transforms.fit_image(image, config.resolution, flip=flip)}
    else:
        content = {
            "image": None,
            "posterior": latent_cache.posterior(record.index, flip=flip),
            "text": latent_cache.text(record, tokens.input_ids),
        }
    return Example(
        segment_map=fitted_map,
        subject_pixels=pixels,
        subject_ids=ids,
        input_ids=tokens.input_ids,
        subject_token_index=tokens.subject_token_index[:count],
        has_subject=tokens.has_subject[:count],
        index=np.asarray(record.index, np.int32),
        **content,
    )


def _draw_caption(
    record: Record, config: DataConfig, rng: np.random.Generator, training: bool
) -> tuple[str, list[Segment]]:
    """Samples the caption and its subjects, in the order of the caption."""
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
    """Returns the subjects that have a word of their own within the 77 tokens."""
    kept: list[Segment] = []
    begin = 0
    for subject in subjects:
        if caption[begin : subject.end].strip():
            kept.append(subject)
            begin = subject.end
    max_tokens = MAX_TOKENS - 2  # less start and end of text
    if len(caption.encode()) <= max_tokens:  # no token is shorter than a byte
        return kept
    num_tokens, begin = 0, 0
    for i, subject in enumerate(kept):
        piece = caption[begin : subject.end]
        num_tokens += len(tokenizer(piece, add_special_tokens=False, verbose=False).input_ids)
        if num_tokens > max_tokens:
            return kept[:i]
        begin = subject.end
    return kept


def _subject_pixels(
    crop: UInt8[np.ndarray, "h w 3"], side: int, rng: np.random.Generator | None
) -> UInt8[np.ndarray, "r r 3"]:
    """Resizes a crop to a square, and augments it if there is a generator."""
    if rng is None:
        return transforms.pad_and_resize(crop, side)
    if rng.random() < 0.5:
        # FastComposer enlarges the crop before cutting; the resize undoes that.
        crop = transforms.top_square(crop)
    return transforms.augment(transforms.pad_and_resize(crop, side), rng)
