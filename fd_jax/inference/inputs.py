"""Builds the arrays that the networks take, from prompts and photographs."""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

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
    load_photograph,
    subject_pixels,
)
from fd_jax.errors import InputError

MAX_SEED = 2**32 - 1


class SamplingInputs(NamedTuple):
    """Inputs of the encoders on the host, one row per prompt. Absent subjects are black."""

    input_ids: Int32[np.ndarray, "b n"]
    null_ids: Int32[np.ndarray, "b n"]  # tokens of the negative prompt
    subject_pixels: Float32[np.ndarray, "b s r r 3"]
    subject_token_index: Int32[np.ndarray, "b s"]
    has_subject: Bool[np.ndarray, "b s"]


class ImageKey(NamedTuple):
    """The inputs of an image, and the draw of its noise."""

    prompt: int  # row of the inputs
    seed: int  # 0..2**32 - 1
    number: int  # number of the image among those of its prompt and seed


def make_inputs(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    references: Sequence[Sequence[Photograph]],
    negative_prompts: Sequence[str],
    *,
    subject_resolution: int,
    max_length: int = MAX_TOKENS,
    needs_subjects: bool = True,
    warn: Callable[[str], object] = warnings.warn,
) -> SamplingInputs:
    """Tokenizes prompts and loads their photographs.

    Args:
        tokenizer: A CLIP tokenizer.
        prompts: Prompts with a marker for each subject.
        references: Photographs of each prompt, in the order of its markers.
        negative_prompts: Prompts to guide away from, without markers.
        subject_resolution: Side of the subjects' pixels.
        max_length: Number of tokens that the text encoder takes, at most 77.
        needs_subjects: Whether a prompt without subjects is an error. If not, photographs may
            also be left out.
        warn: Function of messages about words beyond the 77 tokens, and about prompt weights.

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
    return SamplingInputs(
        np.stack([caption.input_ids for caption in captions]),
        np.stack([caption.input_ids for caption in negatives]),
        _load_subjects(references, subject_resolution),
        np.stack([caption.subject_token_index for caption in captions]),
        np.stack([caption.has_subject for caption in captions]),
    )


def _load_subjects(
    references: Sequence[Sequence[Photograph]], resolution: int
) -> Float32[np.ndarray, "b s r r 3"]:
    loaded: dict[str, np.ndarray] = {}  # one photograph may serve many prompts

    def pixels(source: Photograph) -> np.ndarray:
        if not isinstance(source, str):
            return subject_pixels(load_photograph(source), resolution)
        if source not in loaded:
            loaded[source] = subject_pixels(load_photograph(source), resolution)
        return loaded[source]

    shape = (len(references), MAX_SUBJECTS, resolution, resolution, 3)
    subjects = np.zeros(shape, np.float32)
    for row, photographs in zip(subjects, references, strict=True):
        for slot, photograph in zip(row, photographs, strict=False):
            slot[:] = pixels(photograph)
    return subjects


def _tokenize(
    tokenizer: Tokenizer, prompt: str, name: str, warn: Callable[[str], object]
) -> Caption:
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
