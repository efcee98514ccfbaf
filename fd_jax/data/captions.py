"""From a prompt with subject markers to token ids and the positions of the subjects' words."""

import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from fd_jax.errors import InputError

SUBJECT_MARKER = "<|image|>"
MAX_SUBJECTS = 4
MAX_TOKENS = 77  # positions of CLIP's text encoder, start and end of text included

Tokenizer = Any  # transformers.CLIPTokenizer, which is imported only once one is loaded


class PromptError(InputError):
    """A prompt, a caption or a tokenizer that cannot be used as it is."""


class Caption(NamedTuple):
    """A prompt as the text encoder takes it: markers removed, cut or padded to 77 tokens."""

    input_ids: Int32[np.ndarray, "77"]
    subject_token_mask: Bool[np.ndarray, "77"]  # true at the token that each subject is bound to
    subject_token_index: Int32[np.ndarray, "4"]  # the same as positions in order, 0 where absent
    has_subject: Bool[np.ndarray, "4"]  # which of the four positions are in use
    lost: str  # the words that did not fit, as written; "" if the prompt is whole

    @property
    def num_subjects(self) -> int:
        return int(self.has_subject.sum())


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Returns the CLIP tokenizer stored in `folder`, without a look at the network.

    Args:
        folder: Holds `vocab.json` and `merges.txt`, or `tokenizer.json`, and, if its padding is
            not CLIP's own, `tokenizer_config.json`.

    Raises:
        FileNotFoundError: The folder or a file in it is missing.
        PromptError: The files are damaged, or belong to another tokenizer.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"tokenizer folder {folder} does not exist or is not a folder")
    if not (folder / "tokenizer.json").is_file():
        _check_bpe(folder)
    try:
        tokenizer = _clip_tokenizer().from_pretrained(folder, local_files_only=True)
        # Asks for one token per word, because without its merges CLIP's tokenizer still loads.
        words = tokenizer.convert_ids_to_tokens(tokenizer("a woman").input_ids)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PromptError(f"{folder} holds no readable CLIP tokenizer: {error}") from error
    if words != ["<|startoftext|>", "a</w>", "woman</w>", "<|endoftext|>"]:
        raise PromptError(
            f"{folder} holds no CLIP tokenizer: 'a woman' becomes {words}, expected one token a "
            "word between <|startoftext|> and <|endoftext|>"
        )
    return tokenizer


def tokenize(tokenizer: Tokenizer, prompt: str) -> Caption:
    """Returns the tokens of `prompt` and, for each marker, the token just before it.

    The pieces between the markers are tokenized one by one, as if the marker were a token of its
    own that is dropped afterwards. Markers bind to subjects in the order of the prompt.

    Args:
        tokenizer: A CLIP tokenizer, which is left as it is.
        prompt: For example `a man <|image|> and a woman <|image|>`. May be empty.

    Raises:
        PromptError: The prompt has more than four markers, one misspelt in its letters' case, one
            with no word of its own before it, or one whose word lies beyond the 77 tokens.
    """
    _check_text(prompt)
    pieces = prompt.split(SUBJECT_MARKER)
    num_subjects = len(pieces) - 1
    if num_subjects > MAX_SUBJECTS:
        raise PromptError(
            f"{num_subjects} markers {SUBJECT_MARKER}, expected at most {MAX_SUBJECTS}: {prompt!r}"
        )

    # `verbose` off: the tokenizer's note on long prompts does not say what is lost.
    encoded = [tokenizer(piece, add_special_tokens=False, verbose=False) for piece in pieces]
    # Each piece's last token; position 0 is the start of text.
    ends = np.cumsum([len(piece.input_ids) for piece in encoded])
    room = MAX_TOKENS - 2
    for i in range(num_subjects):
        if not encoded[i].input_ids:
            character = len(SUBJECT_MARKER.join(pieces[: i + 1]))
            raise PromptError(
                f"marker {i + 1} of {num_subjects} (character {character}) has no word of its own "
                f"before it, expected a noun such as 'a man {SUBJECT_MARKER}': {prompt!r}"
            )
        if ends[i] > room:
            raise PromptError(
                f"the word of marker {i + 1} of {num_subjects}, after {pieces[i][-30:]!r}, is "
                f"token {ends[i]} of the prompt, expected {room} at most: {prompt!r}"
            )

    lost = ""
    if ends[-1] > room:  # within the last piece, since all markers are inside
        word = encoded[-1].word_ids()[room - ends[-1]]
        lost = pieces[-1][encoded[-1].word_to_chars(word).start :].rstrip()
    ids = [i for piece in encoded for i in piece.input_ids]
    # The released code cuts the end of text too, which CLIP has never been without.
    ids = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]

    input_ids = np.full(MAX_TOKENS, tokenizer.pad_token_id, np.int32)
    input_ids[: len(ids)] = ids
    index = np.zeros(MAX_SUBJECTS, np.int32)
    index[:num_subjects] = ends[:num_subjects]
    mask = np.zeros(MAX_TOKENS, bool)
    mask[ends[:num_subjects]] = True
    return Caption(input_ids, mask, index, np.arange(MAX_SUBJECTS) < num_subjects, lost)


def mark_subjects(caption: str, ends: Sequence[int]) -> str:
    """Returns `caption` with a marker after each noun phrase.

    Args:
        caption: Text without markers.
        ends: Where the noun phrases end: character offsets, exclusive, in rising order. Two that
            end in the same place would share a word, and are refused like those out of order.

    Raises:
        PromptError: An offset is out of order or outside the caption, or a marker is in it already.
    """
    if SUBJECT_MARKER in caption:
        raise PromptError(f"expected a caption without {SUBJECT_MARKER}, got {caption!r}")
    borders = [0, *ends, len(caption)]
    if any(a >= b for a, b in zip(borders[:-2], ends, strict=True)) or borders[-2] > len(caption):
        raise PromptError(
            f"noun phrases end at {list(ends)}, expected rising offsets from 1 to {len(caption)}: "
            f"{caption!r}"
        )
    pieces = [caption[a:b] for a, b in itertools.pairwise(borders)]
    return SUBJECT_MARKER.join(pieces)


def strip_markers(prompt: str) -> str:
    """Returns `prompt` without markers; its tokens are those of `tokenize`."""
    # A space stays in each marker's place: the words at its sides are separate tokens.
    return re.sub(rf" *{re.escape(SUBJECT_MARKER)} *", " ", prompt).strip(" ")


def _check_text(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise PromptError(f"expected the prompt to be a str, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a command line in another encoding, for one
        raise PromptError(f"the prompt is not valid text: {error}") from error
    for match in re.finditer(re.escape(SUBJECT_MARKER), prompt, re.IGNORECASE):
        if match[0] != SUBJECT_MARKER:
            raise PromptError(
                f"found {match[0]} at character {match.start()}, expected {SUBJECT_MARKER} in "
                f"small letters: {prompt!r}"
            )


def _check_bpe(folder: Path) -> None:
    """Checks the vocabulary, as transformers accepts wrong ones, or names no file."""
    names = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if names:
        raise FileNotFoundError(f"tokenizer folder {folder} lacks {' and '.join(names)}")
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").strip("\n").split("\n")
    except ValueError as error:
        raise PromptError(f"a tokenizer file in {folder} is damaged: {error}") from error
    if not isinstance(vocabulary, dict):
        raise PromptError(f"{folder / 'vocab.json'} is a {type(vocabulary).__name__}, not a table")
    merges = [line.split(" ") for line in lines if not line.startswith("#version")]
    for merge in merges:
        if len(merge) != 2 or not {*merge, "".join(merge)} <= vocabulary.keys():
            raise PromptError(
                f"{folder / 'merges.txt'}: {' '.join(merge)[:60]!r} is no merge of two tokens of "
                "vocab.json"
            )
    # Every byte, inside and at the end of a word; what the merges make; start and end of text.
    if len(vocabulary) != 2 * 256 + len(merges) + 2:
        raise PromptError(
            f"{folder}: {len(vocabulary)} tokens in vocab.json and {len(merges)} merges in "
            f"merges.txt, expected {len(vocabulary) - 514} merges"
        )


def _clip_tokenizer() -> type:
    # Without PyTorch transformers says so when imported. Nothing here wants it.
    logger = logging.getLogger("transformers")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        from transformers import CLIPTokenizer
    finally:
        logger.removeFilter(is_wanted)
    return CLIPTokenizer
