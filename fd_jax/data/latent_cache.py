"""What frozen encoders make of training items, in files that are read in place of images."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Int32, Shaped

from fd_jax.data.captions import MAX_SUBJECTS, PromptError, Tokenizer, mark_subjects, tokenize
from fd_jax.data.ffhq.folder import Record
from fd_jax.data.ffhq.record import DataError
from fd_jax.errors import InputError

INFO_FILE = "encodings.json"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Block(NamedTuple):
    """The encodings of items next to each other, as they are stored.

    bfloat16 is stored as what its bits are as uint16, which numpy's files and processes that share
    memory know.
    """

    moments: Shaped[np.ndarray, "n 2 h w 8"]  # mean and log variance of image and mirror image
    texts: Shaped[np.ndarray, "m 77 d"]
    tokens: Int32[np.ndarray, "m 77"]  # that the texts were made of


class Encodings:
    """A folder of blocks.

    Args:
        folder: What `fd_jax.training.encoding.build` wrote.
        size: Items of a block; the last one may have fewer.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self._blocks: dict[int, Block] = {}

    def __reduce__(self):
        return Encodings, (self.folder, self.size)  # files are opened anew by each process

    def moments(self, index: int, *, flip: bool) -> Shaped[np.ndarray, "h w 8"]:
        """Returns the moments of an item's image, mirrored or not."""
        return np.array(self._block(index).moments[index % self.size, int(flip)])

    def text(self, record: Record, tokens: Int32[np.ndarray, "77"]) -> Shaped[np.ndarray, "77 d"]:
        """Returns the encoding of an item's tokens. Raises DataError if it was never made."""
        block = self._block(record.index)
        [found] = np.nonzero((block.tokens == tokens).all(axis=1))
        if not len(found):
            raise DataError(
                f"item {record.id}: its caption is not the one that {self.folder} was made of: "
                "expected the same data, or another data.encodings"
            )
        return np.array(block.texts[found[0]])

    def _block(self, index: int) -> Block:
        number = index // self.size
        if number not in self._blocks:
            self._blocks[number] = read_block(self.folder, number)
        return self._blocks[number]


def token_sequences(record: Record, tokenizer: Tokenizer) -> list[Int32[np.ndarray, "77"]]:
    """Returns all that an item's caption can become, whichever of its subjects are marked.

    That is one sequence of tokens, but for a subject whose noun phrase ends inside of a word.

    Raises:
        DataError: The caption cannot be used. The message names the item.
    """

    def tokens(ends: Sequence[int]) -> Int32[np.ndarray, "77"] | None:
        try:
            return tokenize(tokenizer, mark_subjects(record.caption, ends)).input_ids
        except PromptError:
            return None  # no example has these subjects

    try:
        whole = tokenize(tokenizer, record.caption).input_ids
    except PromptError as error:
        raise DataError(f"item {record.id}: {error}") from error
    found = {whole.tobytes(): whole}
    # Where a mark alone changes nothing, or cannot be, that is so beside others too.
    alone = {end: tokens([end]) for end in sorted({segment.end for segment in record.segments})}
    ends = [end for end, ids in alone.items() if ids is not None and (ids != whole).any()]
    for count in range(1, MAX_SUBJECTS + 1):
        for chosen in itertools.combinations(ends, count):
            if (other := tokens(chosen)) is not None:
                found[other.tobytes()] = other
    return list(found.values())


def write_block(folder: Path, number: int, block: Block) -> None:
    """Writes a block; it is there once all of it is. Raises InputError."""
    try:
        # The last one tells that the block is whole.
        for name in reversed(Block._fields):
            path = _path(folder, number, name)
            part = path.with_name(f".{path.name}")
            with part.open("wb") as file:
                np.save(file, _stored(getattr(block, name)), allow_pickle=False)
            part.replace(path)
    except OSError as error:
        raise InputError(f"cannot write encodings to {folder}: {error}") from error


def has_block(folder: Path, number: int) -> bool:
    return _path(folder, number, Block._fields[0]).is_file()


def read_block(folder: Path, number: int) -> Block:
    """Maps a block's files into memory. Raises DataError if one is missing or damaged."""
    paths = [_path(folder, number, name) for name in Block._fields]
    try:
        return Block(*(np.load(path, mmap_mode="r", allow_pickle=False) for path in paths))
    except (OSError, ValueError) as error:
        raise DataError(
            f"encodings cannot be read: {error}; expected what was written to {folder}: delete it "
            "to have it made again"
        ) from error


def read_info(folder: Path) -> dict[str, Any] | None:
    """Returns what the encodings of a folder are of, if it has any. Raises InputError."""
    path = folder / INFO_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Says what encodings are of. Raises InputError if the folder cannot be written."""
    part = folder / f".{INFO_FILE}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(info))
        part.replace(folder / INFO_FILE)
    except OSError as error:
        raise InputError(f"cannot write encodings to {folder}: {error}") from error


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}_{name}.npy"


def _stored(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    return array.view(np.uint16) if array.dtype == _BFLOAT16 else array
