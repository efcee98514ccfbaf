"""Latent cache: VAE posteriors and text embeddings, read in place of images.

It serves training with a frozen VAE and a frozen text encoder.
"""

import itertools
import json
import tokenize
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jaxtyping import Int32, Shaped

from fd_jax.buckets import BucketPath, fetch
from fd_jax.data.captions import (
    MAX_SUBJECTS,
    PromptError,
    Tokenizer,
    split_caption,
    tokenize_pieces,
)
from fd_jax.data.ffhq.record import DataError, Record
from fd_jax.errors import InputError
from fd_jax.files import atomic_file, write_json

INFO_FILE = "latent_cache.json"
_OLD_INFO_FILE = "encodings.json"  # of version 0.1
# Exceptions that json and NumPy raise on damaged files.
_DAMAGE = (OSError, ValueError, TypeError, LookupError, RecursionError, SyntaxError, MemoryError)
_DAMAGE += (OverflowError, EOFError, tokenize.TokenError)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Block(NamedTuple):
    """Posteriors and text embeddings of consecutive items, as they are stored.

    bfloat16 is stored as its bits in uint16, which NumPy's files and shared memory support.
    """

    posterior: Shaped[np.ndarray, "n 2 h w 8"]  # mean and log variance, of image and mirror image
    texts: Shaped[np.ndarray, "m 77 d"]  # text embeddings
    tokens: Int32[np.ndarray, "m 77"]  # token ids of the text embeddings


class LatentCache:
    """Reads a folder of blocks.

    Args:
        folder: Folder that `fd_jax.training.latent_cache` wrote.
        size: Items of a block; the last one may have fewer.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self._blocks: dict[int, Block] = {}

    def __reduce__(self):
        return LatentCache, (self.folder, self.size)  # each process opens the files itself

    def posterior(self, index: int, *, flip: bool) -> Shaped[np.ndarray, "h w 8"]:
        """Returns the VAE posterior of an item's image, mirrored or not."""
        return np.array(self._block(index).posterior[index % self.size, int(flip)])

    def text(self, record: Record, tokens: Int32[np.ndarray, "77"]) -> Shaped[np.ndarray, "77 d"]:
        """Returns the text embeddings of an item's tokens. Raises DataError if they are missing."""
        block = self._block(record.index)
        [found] = np.nonzero((block.tokens == tokens).all(axis=1))
        if not len(found):
            raise DataError(
                f"item {record.id}: its caption is not the one that {self.folder} was made of: "
                "expected the same data, or another data.latent_cache"
            )
        return np.array(block.texts[found[0]])

    def _block(self, index: int) -> Block:
        number = index // self.size
        if number not in self._blocks:
            self._blocks[number] = read_block(self.folder, number)
        return self._blocks[number]


def token_sequences(record: Record, tokenizer: Tokenizer) -> list[Int32[np.ndarray, "77"]]:
    """Tokenizes an item's caption with every choice of its subjects.

    The tokens are the same for all choices, unless a noun phrase ends inside of a word.

    Raises:
        DataError: The caption cannot be used. The message names the item.
    """

    def tokens(ends: Sequence[int]) -> Int32[np.ndarray, "77"] | None:
        try:
            return tokenize_pieces(tokenizer, split_caption(record.caption, ends)).input_ids
        except PromptError:
            return None  # no example chooses these subjects

    try:
        whole = tokenize_pieces(tokenizer, split_caption(record.caption, [])).input_ids
    except PromptError as error:
        raise DataError(f"item {record.id}: {error}") from error
    found = {whole.tobytes(): whole}
    # A subject that changes no token alone, or cannot be chosen, changes none beside others.
    alone = {end: tokens([end]) for end in sorted({segment.end for segment in record.segments})}
    ends = [end for end, ids in alone.items() if ids is not None and (ids != whole).any()]
    for count in range(1, MAX_SUBJECTS + 1):
        for chosen in itertools.combinations(ends, count):
            if (other := tokens(chosen)) is not None:
                found[other.tobytes()] = other
    return list(found.values())


def write_block(folder: Path, number: int, block: Block) -> None:
    """Writes a block with checksums, which make it complete. Raises InputError."""
    checksums = {}
    try:
        for name in Block._fields:
            array = np.ascontiguousarray(_stored(getattr(block, name)))
            checksums[name] = _checksum(array, number, name)
            path = _path(folder, number, name)
            with atomic_file(path) as part, part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        write_json(_checksum_path(folder, number), checksums)
    except OSError as error:
        raise InputError(f"cannot write the latent cache to {folder}: {error}") from error


def has_block(folder: Path, number: int) -> bool:
    """Whether a block was written completely."""
    return _checksum_path(folder, number).is_file()


def read_block(folder: Path, number: int) -> Block:
    """Maps a block's files into memory, after a look at their checksums.

    Raises:
        DataError: A file is missing or damaged. The message names it.
    """
    path = _checksum_path(folder, number)
    arrays = []
    try:
        checksums = json.loads(path.read_bytes())
        for name in Block._fields:
            path = _path(folder, number, name)
            stored = fetch(path) if isinstance(path, BucketPath) else path
            array = np.load(stored, mmap_mode="r", allow_pickle=False)
            if _checksum(array, number, name) != checksums[name]:
                raise ValueError("its checksum differs from the one written with it")
            arrays.append(array)
    except _DAMAGE as error:
        names = " ".join(path.name for path in _paths(folder, number))
        raise DataError(
            f"{path} of the latent cache is damaged or missing: {error}; delete {names} in that "
            "folder to have the block encoded again"
        ) from error
    return Block(*arrays)


def read_info(folder: Path) -> dict[str, Any] | None:
    """Reads what a latent cache was made from, or returns None if there is none.

    Raises:
        InputError: The file is damaged, or version 0.1 wrote the cache.
    """
    if (folder / _OLD_INFO_FILE).exists():
        raise InputError(
            f"{folder} is a latent cache of version 0.1, which has no checksums: expected another "
            "folder, or delete it"
        )
    path = folder / INFO_FILE
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(info, dict):
        raise InputError(f"{path} holds a {type(info).__name__}, expected a JSON object")
    return info


def write_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes what a latent cache is made from. Raises InputError."""
    write_json(folder / INFO_FILE, info)


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}_{name}.npy"


def _checksum_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}_checksums.json"


def _paths(folder: Path, number: int) -> list[Path]:
    return [
        *(_path(folder, number, name) for name in Block._fields),
        _checksum_path(folder, number),
    ]


def _checksum(array: Shaped[np.ndarray, "*shape"], number: int, name: str) -> int:
    """Computes the CRC-32 of an array's bytes with its place, dtype and shape."""
    place = f"{number} {name} {array.dtype.str} {array.shape}"
    return zlib.crc32(np.ascontiguousarray(array).data.cast("B"), zlib.crc32(place.encode()))


def _stored(array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    return array.view(np.uint16) if array.dtype == _BFLOAT16 else array
