"""Checksums of arrays: made as they are saved, compared as they are read."""

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from fd_jax.checkpoints.errors import DamagedError

Box = tuple[tuple[int, int], ...]  # begin and end of a part of an array, on each axis


def box(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """Returns the part of an array that an index selects."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))


def checksums(arrays: Mapping[str, Array]) -> dict[str, int | dict[str, int]]:
    """Returns a checksum of each array: of its name, dtype, shape and bytes.

    An array that is sharded over processes has one for each shard. All processes call this.
    """
    whole = {
        name: array
        for name, array in arrays.items()
        if array.is_fully_addressable or array.is_fully_replicated
    }
    for array in whole.values():
        array.copy_to_host_async()
    with ThreadPoolExecutor() as pool:
        sums = pool.map(lambda name: _checksum(name, np.asarray(whole[name])), whole)
        found: dict[str, Any] = dict(zip(whole, sums, strict=True))
    sharded = {name: array for name, array in arrays.items() if name not in whole}
    return found | _checksums_of_shards(sharded) if sharded else found


def _checksums_of_shards(arrays: Mapping[str, Array]) -> dict[str, dict[str, int]]:
    """Returns the checksums of all shards, each of which one process computes."""
    names: list[tuple[str, str]] = []
    own: list[int] = []
    for name, array in arrays.items():
        owners: dict[Box, int] = {}
        for device, index in array.sharding.devices_indices_map(array.shape).items():
            owners.setdefault(box(index, array.shape), device.process_index)
        here = {box(shard.index, array.shape): shard.data for shard in array.addressable_shards}
        for place, owner in owners.items():
            names.append((name, _text(place)))
            is_own = owner == jax.process_index()
            own.append(_checksum(name, np.asarray(here[place]), place) if is_own else 0)
    # Each entry is zero on all processes but one.
    gathered = multihost_utils.process_allgather(np.array(own, np.uint32))
    found: dict[str, dict[str, int]] = {name: {} for name in arrays}
    for (name, place), number in zip(names, np.asarray(gathered).max(axis=0), strict=True):
        found[name][place] = int(number)
    return found


def check(
    where: str,
    name: str,
    shape: Sequence[int],
    pieces: Mapping[Box, np.ndarray],
    expected: object,
) -> None:
    """Checks an array, or each of its shards, if this process has read all of it.

    Args:
        where: Folder of the array, for messages.
        name: Name of the array.
        shape: Shape of the array.
        pieces: The parts that this process has read, as they are stored.
        expected: Checksum of the array, or of its shards.

    Raises:
        DamagedError: The array is not the one that was saved.
    """
    entire = tuple((0, size) for size in shape)
    parts = expected if isinstance(expected, dict) else {_text(entire): expected}
    for text, number in parts.items():
        place = _parsed(text)
        values = _values(pieces, place)
        if values is None:
            continue
        found = _checksum(name, values, None if place == entire else place)
        if found != number:
            part = "" if place == entire else f" in [{text}]"
            raise DamagedError(
                f"{where}: the array {name} has changed since it was saved{part}: its checksum is "
                f"{found}, expected {number!r:.80}"
            )


def _values(pieces: Mapping[Box, np.ndarray], place: Box) -> np.ndarray | None:
    """Returns a part of an array, or None if not all of it was read."""
    if place in pieces:
        return pieces[place]
    shape = tuple(end - begin for begin, end in place)
    values, count = None, 0
    for piece, content in pieces.items():
        common = [(max(a, c), min(b, d)) for (a, b), (c, d) in zip(place, piece, strict=True)]
        if any(begin >= end for begin, end in common):
            continue
        values = np.empty(shape, content.dtype) if values is None else values
        to = tuple(slice(b - o, e - o) for (b, e), (o, _) in zip(common, place, strict=True))
        of = tuple(slice(b - o, e - o) for (b, e), (o, _) in zip(common, piece, strict=True))
        values[to] = content[of]
        count += values[to].size
    return values if values is not None and count == values.size else None


def _checksum(name: str, array: np.ndarray, place: Box | None = None) -> int:
    """Returns the CRC-32 of an array, or of its part at a place."""
    header = f"{name} {array.dtype} {array.shape}" + ("" if place is None else f" {_text(place)}")
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return zlib.crc32(content, zlib.crc32(header.encode()))


def _text(place: Box) -> str:
    return ",".join(f"{begin}:{end}" for begin, end in place)


def _parsed(text: str) -> Box:
    """Reads what `_text` wrote. Raises ValueError."""
    parts = [part.split(":") for part in text.split(",")] if text else []
    return tuple((int(begin), int(end)) for begin, end in parts)
