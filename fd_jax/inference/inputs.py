"""Builds the arrays that the networks take, from prompts and photographs."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from fd_jax.data.captions import (
    MAX_SUBJECTS,
    MAX_TOKENS,
    SUBJECT_MARKER,
    Caption,
    PromptError,
    Tokenizer,
    tokenize,
)
from fd_jax.data.photographs import (
    MAX_SUBJECT_RESOLUTION,
    Photograph,
    PhotographError,
    is_photograph,
    load_photograph,
    subject_pixels,
)
from fd_jax.data.reference_crops import crop_reference, has_detector
from fd_jax.errors import InputError
from fd_jax.images.pixels import to_uint8

MAX_SEED = 2**32 - 1
MAX_PHOTOGRAPHS = 16  # of one person

Warn = Callable[[str], object]
Person = Photograph | Sequence[Photograph]  # one photograph, or several of the same person


class SamplingInputs(NamedTuple):
    """Inputs of the encoders on the host, one row per prompt. Absent subjects are black."""

    input_ids: Int32[np.ndarray, "b n"]
    null_ids: Int32[np.ndarray, "b n"]  # tokens of the negative prompt
    subject_pixels: Float32[np.ndarray, "b photographs r r 3"]  # p of each subject, in turn
    subject_token_index: Int32[np.ndarray, "b s"]
    has_subject: Bool[np.ndarray, "b s"]
    # Share of each photograph in its subject's embedding; None if each subject has one photograph.
    weights: Float32[np.ndarray, "b s p"] | None = None


class ImageKey(NamedTuple):
    """The inputs of an image, and the draw of its noise."""

    prompt: int  # row of the inputs
    seed: int  # 0..2**32 - 1
    number: int  # number of the image among those of its prompt and seed


def make_inputs(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    references: Sequence[Sequence[Person]],
    negative_prompts: Sequence[str],
    *,
    subject_resolution: int,
    max_length: int = MAX_TOKENS,
    needs_subjects: bool = True,
    warn: Warn = warnings.warn,
    crop_references: bool | None = False,
) -> SamplingInputs:
    """Tokenizes prompts and loads their photographs.

    Args:
        tokenizer: A CLIP tokenizer.
        prompts: Prompts with a marker for each subject.
        references: Photographs of each prompt, in the order of its markers: one of each person,
            or a list of several.
        negative_prompts: Prompts to guide away from, without markers.
        subject_resolution: Side of the subjects' pixels.
        max_length: Number of tokens that the text encoder takes, at most 77.
        needs_subjects: Whether a prompt without subjects is an error. If not, photographs may
            also be left out.
        crop_references: Whether photographs are cut to head and shoulders and freed of their
            background. None does so where they are not head and shoulders already, if OpenCV is
            installed.
        warn: Function of messages about words beyond the 77 tokens, prompt weights,
            and photographs without a face or with several.

    Raises:
        PromptError: A prompt cannot be used, or does not fit its photographs.
        PhotographError: A photograph cannot be used.
    """
    if not 2 <= subject_resolution <= MAX_SUBJECT_RESOLUTION:
        raise InputError(
            f"subject_resolution is {subject_resolution!r}, expected 2..{MAX_SUBJECT_RESOLUTION}"
        )
    captions = []
    for prompt, photographs in zip(prompts, references, strict=True):
        captions.append(_tokenize(tokenizer, prompt, "prompt", warn))
        _check_counts(prompt, captions[-1].num_subjects, len(photographs), needs_subjects)
    negatives = [
        _tokenize(tokenizer, prompt, "negative prompt", warn) for prompt in negative_prompts
    ]
    for caption, prompt in zip(negatives, negative_prompts, strict=True):
        if caption.num_subjects:
            raise PromptError(f"the negative prompt has a marker {SUBJECT_MARKER}: {prompt!r}")
    if max_length < MAX_TOKENS:
        raise PromptError(
            f"the text encoder takes {max_length} tokens, expected {MAX_TOKENS} as CLIP's does"
        )
    pixels, weights = _load_subjects(references, subject_resolution, crop_references, warn)
    return SamplingInputs(
        np.stack([caption.input_ids for caption in captions]),
        np.stack([caption.input_ids for caption in negatives]),
        pixels,
        np.stack([caption.subject_token_index for caption in captions]),
        np.stack([caption.has_subject for caption in captions]),
        weights,
    )


def join_inputs(parts: Sequence[SamplingInputs]) -> SamplingInputs:
    """Returns the inputs of several batches as one."""
    most = max(_photographs_each(part) for part in parts)
    parts = [_with_photographs(part, most) for part in parts]
    columns: Any = zip(*parts, strict=True)
    joined: Any = [None if c[0] is None else np.concatenate(c) for c in columns]
    return SamplingInputs(*joined)


def shown_references(inputs: SamplingInputs, row: int) -> list[UInt8[np.ndarray, "r r 3"]]:
    """Returns the photographs of a prompt as the image encoder gets them, in their order."""
    is_used = inputs.has_subject[row][:, None]
    if inputs.weights is not None:
        is_used = is_used & (inputs.weights[row] > 0)
    return list(to_uint8(inputs.subject_pixels[row][is_used.ravel()]))


def photographs_of(person: Person) -> list[Photograph]:
    """Returns the photographs of a person as a list."""
    one: Any = person
    return [one] if is_photograph(person) else list(one)


def _photographs_each(inputs: SamplingInputs) -> int:
    return 1 if inputs.weights is None else inputs.weights.shape[2]


def _with_photographs(inputs: SamplingInputs, count: int) -> SamplingInputs:
    """Adds black photographs of no weight, so that each subject has `count`."""
    each = _photographs_each(inputs)
    if each == count:
        return inputs
    b, s = inputs.has_subject.shape
    pixels = inputs.subject_pixels.reshape(b, s, each, *inputs.subject_pixels.shape[2:])
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, count - each), *((0, 0),) * 3))
    weights = np.ones((b, s, 1), np.float32) if inputs.weights is None else inputs.weights
    weights = np.pad(weights, ((0, 0), (0, 0), (0, count - each)))
    return inputs._replace(
        subject_pixels=pixels.reshape(b, s * count, *pixels.shape[3:]), weights=weights
    )


def _load_subjects(
    references: Sequence[Sequence[Person]], resolution: int, crop: bool | None, warn: Warn
) -> tuple[Float32[np.ndarray, "b photographs r r 3"], Float32[np.ndarray, "b s p"] | None]:
    """Returns the pixels of all subjects, and the weights if one has several photographs."""
    loaded: dict[str, np.ndarray] = {}  # one photograph may serve many prompts

    def pixels(source: Photograph) -> np.ndarray:
        if not isinstance(source, str | os.PathLike):
            return subject_pixels(_prepared(source, crop, warn), resolution)
        if (name := os.fspath(source)) not in loaded:
            loaded[name] = subject_pixels(_prepared(source, crop, warn), resolution)
        return loaded[name]

    rows = [[photographs_of(person) for person in row] for row in references]
    counts = [len(person) for row in rows for person in row]
    if counts and not 1 <= min(counts) <= max(counts) <= MAX_PHOTOGRAPHS:
        raise PhotographError(
            f"a person has {min(counts) if min(counts) < 1 else max(counts)} photographs, expected "
            f"1..{MAX_PHOTOGRAPHS}"
        )
    # A power of two, so that few numbers of photographs are compiled.
    each = 1 << (max(counts, default=1) - 1).bit_length()
    subjects = np.zeros((len(rows), MAX_SUBJECTS, each, resolution, resolution, 3), np.float32)
    weights = np.zeros((len(rows), MAX_SUBJECTS, each), np.float32)
    for i, row in enumerate(rows):
        for j, person in enumerate(row[:MAX_SUBJECTS]):
            for k, photograph in enumerate(person):
                subjects[i, j, k] = pixels(photograph)
                weights[i, j, k] = 1 / len(person)
    flat = subjects.reshape(len(rows), MAX_SUBJECTS * each, resolution, resolution, 3)
    return flat, None if each == 1 else weights


def _prepared(source: Photograph, crop: bool | None, warn: Warn) -> UInt8[np.ndarray, "h w 3"]:
    """Loads a photograph, and crops it if wanted. Warns of what is not as expected."""
    photograph = load_photograph(source)
    if crop is False or (crop is None and not has_detector()):
        return photograph
    pixels, note = crop_reference(photograph, always=bool(crop))
    if note:
        is_path = isinstance(source, str | os.PathLike)
        name = os.fsencode(source).decode(errors="backslashreplace") if is_path else "in memory"
        warn(f"photograph {name}: {note}")
    return pixels


def _tokenize(tokenizer: Tokenizer, prompt: str, name: str, warn: Warn) -> Caption:
    caption = tokenize(tokenizer, prompt)
    if caption.weight:
        warn(
            f"{caption.weight!r} looks like a prompt weight, which is no feature here: its signs "
            "and numbers are read as words"
        )
    if caption.lost:
        warn(f"the {name} is longer than {MAX_TOKENS} tokens; lost is {caption.lost!r}")
    return caption


def _check_counts(prompt: str, num_markers: int, num_photographs: int, needs_subjects: bool):
    if num_markers == 0 and needs_subjects:
        raise PromptError(
            f"the prompt has no marker, expected {SUBJECT_MARKER} after each person's word, such "
            f"as 'a man {SUBJECT_MARKER}' (only mode 'tdm' goes without): {prompt!r}"
        )
    if num_markers != num_photographs and (needs_subjects or num_photographs):
        raise PromptError(
            f"the prompt has {num_markers} markers {SUBJECT_MARKER} and {num_photographs} "
            f"photographs, expected one photograph for each marker: {prompt!r}"
        )
