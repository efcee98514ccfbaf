"""Tokenizes prompts and captions, and locates the tokens of their subjects."""

import itertools
import json
import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from fd_jax.errors import InputError
from fd_jax.plain_paths import utf8_path

SUBJECT_MARKER = "<|image|>"
MAX_SUBJECTS = 4
MAX_TOKENS = 77  # positions of CLIP's text encoder, start and end of text included

Tokenizer = Any  # transformers.CLIPTokenizer, imported when the first one is loaded

# Weights in other programs' prompts: (man:1.3), ((man)), [[man]], man++, (man)1.3
_WEIGHTS = re.compile(
    r"\([^()]*[^()\d]:\s*[+-]?(\d?\.\d+|\d)\s*\)|\(\([^()]*\)\)|\[\[[^\[\]]*\]\]"
    r"|\w(\+\+|--)+(?=[\s,.]|$)|\)\d+\.\d+"
)
# CLIP's tokenizer makes a token of each of these.
_CLITIC = re.compile(r"['\u2019](s|t|re|ve|m|ll|d)$", re.IGNORECASE)


class PromptError(InputError):
    """A prompt, a caption or a tokenizer that cannot be used as it is."""


class Caption(NamedTuple):
    """A tokenized prompt: markers removed, truncated or padded to 77 tokens."""

    input_ids: Int32[np.ndarray, "77"]
    subject_token_mask: Bool[np.ndarray, "77"]  # whether a token is a subject's word
    subject_token_index: Int32[np.ndarray, "4"]  # their positions in order, 0 where absent
    has_subject: Bool[np.ndarray, "4"]  # which of the four entries are in use
    lost: str  # words that were truncated, as written; "" if none
    weight: str = ""  # what looks like a prompt weight, as written; "" if nothing does

    @property
    def num_subjects(self) -> int:
        return int(self.has_subject.sum())


def load_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """Loads a CLIP tokenizer from a folder, without any download.

    Args:
        folder: Folder of `vocab.json` and `merges.txt`, or of `tokenizer.json`; with
            `tokenizer_config.json` if its padding is not CLIP's.

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
        tokenizer = _clip_tokenizer().from_pretrained(utf8_path(folder), local_files_only=True)
        # Expects one token per word, because a CLIP tokenizer without merges still loads.
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
    """Tokenizes a prompt and binds each marker to the token before it.

    Markers bind to subjects in the order of the prompt. A marker must follow its noun directly:
    after a comma, a bracket or a quotation mark it would bind the subject to that sign.

    Args:
        tokenizer: CLIP tokenizer; it is not modified.
        prompt: For example `a man <|image|> and a woman <|image|>`. May be empty.

    Raises:
        PromptError: The prompt has more than four markers, a marker in other letters' case, one
            without a word directly before it, or one whose word lies beyond the 77 tokens.
    """
    _check_text(prompt)
    _check_markers(prompt)
    weight = _WEIGHTS.search(prompt)
    caption = tokenize_pieces(tokenizer, prompt.split(SUBJECT_MARKER))
    return caption if weight is None else caption._replace(weight=weight[0])


def tokenize_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> Caption:
    """Tokenizes the pieces of a text between its subject markers.

    Each piece is tokenized alone, as if the marker were a token that is removed afterwards, and
    each piece but the last ends with the word of a subject.

    Args:
        tokenizer: CLIP tokenizer; it is not modified.
        pieces: One more than there are subjects.

    Raises:
        PromptError: There are more than four subjects, a piece has no word of its own, or its
            word lies beyond the 77 tokens.
    """
    for piece in pieces:
        _check_text(piece)
    text = SUBJECT_MARKER.join(pieces)
    num_subjects = len(pieces) - 1
    if num_subjects > MAX_SUBJECTS:
        raise PromptError(
            f"{num_subjects} markers {SUBJECT_MARKER}, expected at most {MAX_SUBJECTS}: {text!r}"
        )

    # `verbose` off: the tokenizer's warning of long prompts does not say which words are lost.
    encoded = [tokenizer(piece, add_special_tokens=False, verbose=False) for piece in pieces]
    # Position of each piece's last token; position 0 is the start of text.
    ends = np.cumsum([len(piece.input_ids) for piece in encoded])
    max_tokens = MAX_TOKENS - 2
    for i in range(num_subjects):
        if not encoded[i].input_ids:
            character = len(SUBJECT_MARKER.join(pieces[: i + 1]))
            raise PromptError(
                f"marker {i + 1} of {num_subjects} (character {character}) has no word of its own "
                f"before it, expected a noun such as 'a man {SUBJECT_MARKER}': {text!r}"
            )
        if ends[i] > max_tokens:
            raise PromptError(
                f"the word of marker {i + 1} of {num_subjects}, after {pieces[i][-30:]!r}, is "
                f"token {ends[i]} of the prompt, expected {max_tokens} at most: {text!r}"
            )

    lost = ""
    if ends[-1] > max_tokens:  # within the last piece, since all markers are inside
        word = encoded[-1].word_ids()[max_tokens - ends[-1]]
        lost = pieces[-1][encoded[-1].word_to_chars(word).start :].rstrip()
    ids = [i for piece in encoded for i in piece.input_ids]
    # The released code cuts the end of text too, although CLIP was always trained with it.
    ids = [tokenizer.bos_token_id, *ids[:max_tokens], tokenizer.eos_token_id]

    input_ids = np.full(MAX_TOKENS, tokenizer.pad_token_id, np.int32)
    input_ids[: len(ids)] = ids
    index = np.zeros(MAX_SUBJECTS, np.int32)
    index[:num_subjects] = ends[:num_subjects]
    mask = np.zeros(MAX_TOKENS, bool)
    mask[ends[:num_subjects]] = True
    return Caption(input_ids, mask, index, np.arange(MAX_SUBJECTS) < num_subjects, lost)


def _check_markers(prompt: str) -> None:
    """Checks that each marker of a prompt follows a word directly.

    Raises:
        PromptError: A marker is in other letters' case, or follows a sign instead of a word.
    """
    for match in re.finditer(re.escape(SUBJECT_MARKER), prompt, re.IGNORECASE):
        if match[0] != SUBJECT_MARKER:
            raise PromptError(
                f"found {match[0]} at character {match.start()}, expected {SUBJECT_MARKER} in "
                f"small letters: {prompt!r}"
            )
    pieces = prompt.split(SUBJECT_MARKER)
    for i, piece in enumerate(pieces[:-1]):
        if sign := _trailing_sign(piece):
            character = len(SUBJECT_MARKER.join(pieces[: i + 1]))
            raise PromptError(
                f"marker {i + 1} of {len(pieces) - 1} (character {character}) follows {sign}, not "
                f"a word, and would bind the subject to it; expected the marker directly after the "
                f"noun, such as 'a man {SUBJECT_MARKER},': {prompt!r}"
            )


def _trailing_sign(piece: str) -> str:
    """Describes the sign that a piece ends with, or returns "" if it ends with a word."""
    piece = piece.rstrip()
    if not piece:
        return ""
    if match := _CLITIC.search(piece):
        return repr(match[0])
    last = piece[-1]
    category = unicodedata.category(last)
    # Sm and Sc are signs such as + and $. Other symbols, as emoji, and marks may be nouns.
    is_sign = category in ("Sm", "Sc") or category[0] in "PCZ"
    if not is_sign and not (last.isascii() and not last.isalnum()):
        return ""
    return repr(last) if last.isprintable() else f"an invisible character (U+{ord(last):04X})"


def split_caption(caption: str, ends: Sequence[int]) -> list[str]:
    """Splits a caption after each noun phrase, for `tokenize_pieces`.

    Args:
        caption: Text without markers.
        ends: Ends of the noun phrases: exclusive character offsets, strictly increasing, since two
            that end at the same character would share a word.

    Raises:
        PromptError: An offset is out of order or outside of the caption, or the caption has a
            marker.
    """
    if SUBJECT_MARKER in caption.lower():
        raise PromptError(f"expected a caption without {SUBJECT_MARKER}, got {caption!r}")
    borders = [0, *ends, len(caption)]
    if any(a >= b for a, b in zip(borders[:-2], ends, strict=True)) or borders[-2] > len(caption):
        raise PromptError(
            f"noun phrases end at {list(ends)}, expected rising offsets from 1 to {len(caption)}: "
            f"{caption!r}"
        )
    return [caption[a:b] for a, b in itertools.pairwise(borders)]


def mark_subjects(caption: str, ends: Sequence[int]) -> str:
    """Inserts a marker after each noun phrase of a caption; arguments as of `split_caption`."""
    return SUBJECT_MARKER.join(split_caption(caption, ends))


def strip_markers(prompt: str) -> str:
    """Removes the markers from a prompt; its tokens stay those of `tokenize`."""
    # A space replaces each marker: the words at its sides are separate tokens.
    return re.sub(rf" *{re.escape(SUBJECT_MARKER)} *", " ", prompt).strip(" ")


def _check_text(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise PromptError(f"expected the prompt to be a str, got {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # a command line in another encoding, for one
        raise PromptError(f"the prompt is not valid text: {error}") from error


def _check_bpe(folder: Path) -> None:
    """Checks vocabulary and merges: transformers accepts wrong ones, or its error names no file."""
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
    # Each byte, inside and at the end of a word; the merges; start and end of text.
    if len(vocabulary) != 2 * 256 + len(merges) + 2:
        raise PromptError(
            f"{folder}: {len(vocabulary)} tokens in vocab.json and {len(merges)} merges in "
            f"merges.txt, expected {len(vocabulary) - 514} merges"
        )


def _clip_tokenizer() -> type:
    # transformers logs at import that PyTorch is missing, which is not needed here.
    logger = logging.getLogger("transformers")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "PyTorch was not found" not in record.getMessage()

    logger.addFilter(is_wanted)
    try:
        from transformers import CLIPTokenizer
    finally:
        logger.removeFilter(is_wanted)
    return CLIPTokenizer
