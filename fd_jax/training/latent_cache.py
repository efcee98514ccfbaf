"""Encodes the training data once, where neither autoencoder nor text encoder trains."""

import hashlib
import itertools
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Int32, UInt8
from tqdm import tqdm

from fd_jax import params, sharding
from fd_jax.config import differences
from fd_jax.data import transforms
from fd_jax.data.captions import Tokenizer, tokenize
from fd_jax.data.ffhq.record import Record, decode_image
from fd_jax.data.ffhq.source import Source
from fd_jax.data.latent_cache import (
    Block,
    LatentCache,
    has_block,
    read_info,
    token_sequences,
    write_block,
    write_info,
)
from fd_jax.errors import InputError
from fd_jax.files import check_folder
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig

_BLOCK = 256  # items of a file
_ROWS = 4  # images or captions that a device encodes at a time, beside the training state
_PARTS = ("vae", "text_encoder")


def check(config: TrainConfig, trained: Collection[str]) -> None:
    """Raises InputError if what is trained needs images, or one of the encoders trains."""
    if config.data.latent_cache is None:
        return
    objective = config.objective
    if objective.kind not in ("tdm", "sdm") or objective.appearance_weight > 0:
        raise InputError(
            "data.latent_cache is set, expected none: an encoder, an autoencoder or the appearance "
            "loss learns from images"
        )
    for part in _PARTS:
        if any(path.startswith(f"{part}/") for path in trained):
            raise InputError(
                f"data.latent_cache is set, expected none: {part} trains, by optimizer.train, and "
                "what it makes changes"
            )
    check_folder(config.data.latent_cache)


def build(
    config: TrainConfig, source: Source, tokenizer: Tokenizer, networks: Networks, frozen: Flat
) -> LatentCache:
    """Encodes all items that are not encoded yet. All processes call this, and share the folder.

    Every process encodes blocks of its own, on its own devices.

    Args:
        config: Of the run.
        source: The items.
        tokenizer: Of their captions.
        networks: The networks.
        frozen: Parameters that do not train, on the mesh of all processes.

    Raises:
        InputError: The folder holds a latent cache of something else, or cannot be used.
        DataError: An item cannot be used.
    """
    folder = config.data.latent_cache
    leaves = {
        path: sharding.to_host(leaf)
        for path, leaf in sorted(frozen.items())
        if path.startswith(tuple(f"{part}/" for part in _PARTS))
    }
    _check_info(folder, _info(config, source, leaves, networks))
    numbers = range(-(-len(source) // _BLOCK))
    process, count = jax.process_index(), jax.process_count()
    own = [number for number in numbers[process::count] if not has_block(folder, number)]
    if own:
        encoder = _Encoder(networks, leaves)
        with tqdm(
            total=sum(len(_items(source, number)) for number in own),
            desc="encoding the data" if count == 1 else f"encoding 1/{count} of the data",
            unit="item",
            disable=process > 0,
        ) as bar:
            for number in own:
                block = _encode(encoder, source, tokenizer, config.data.resolution, number, bar)
                write_block(folder, number, block)
    if count > 1:
        multihost_utils.sync_global_devices("latent_cache")
    if lost := [number for number in numbers if not has_block(folder, number)]:
        raise InputError(
            f"{folder} lacks {len(lost)} of {len(numbers)} blocks, expected a folder that all "
            "processes share"
        )
    return LatentCache(folder, _BLOCK)


def _info(config: TrainConfig, source: Source, leaves: Flat, networks: Networks) -> dict[str, Any]:
    """What encodings depend on."""
    ids, weights = hashlib.sha256(), hashlib.sha256()
    for name in (name for part in source.ids_by_root for name in part):
        ids.update(f"{name}\n".encode())
    for path, leaf in leaves.items():
        weights.update(path.encode())
        weights.update(np.ascontiguousarray(leaf).view(np.uint8))
    return {
        "items": len(source),
        "ids": ids.hexdigest(),
        "encoders": weights.hexdigest(),
        "resolution": config.data.resolution,
        "dtype": str(networks.dtype),
        "block": _BLOCK,
    }


def _check_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes down what the encodings of a folder are of. Raises InputError if that is other."""
    found = read_info(folder)
    if found is None:
        if jax.process_index() == 0:
            write_info(folder, info)
    elif changed := differences(found, info):
        lines = [f"  {name}: {old!r} there, {new!r} here" for name, (old, new) in changed.items()]
        raise InputError(
            "\n".join([f"{folder} holds a latent cache of something else:", *lines])
            + "\nexpected another data.latent_cache, or none there"
        )


class _Encoder:
    """The autoencoder's way in and the text encoder, on the devices of this process."""

    def __init__(self, networks: Networks, leaves: Flat):
        mesh = sharding.make_mesh(jax.local_devices())
        self._where, self.rows = sharding.batched(mesh), _ROWS * mesh.size
        self._params = sharding.to_mesh(params.nested(leaves), sharding.replicated(mesh))

        def moments(params: dict, images: UInt8[Array, "b h w 3"]) -> Array:
            with sharding.on_mesh(mesh):
                vae = networks.vae.bind(params["vae"])
                posterior = vae.encode(images.astype(jnp.float32) / 127.5 - 1)
            return jnp.concatenate(posterior, axis=-1).astype(networks.dtype)

        def text(params: dict, tokens: Int32[Array, "b n"]) -> Array:
            encoder = networks.text_encoder.bind(params["text_encoder"])
            return encoder(tokens).astype(networks.dtype)

        self._moments, self._text = jax.jit(moments), jax.jit(text)

    def moments(self, images: UInt8[np.ndarray, "b h w 3"]) -> np.ndarray:
        return self._call(self._moments, images)

    def text(self, tokens: Int32[np.ndarray, "b n"]) -> np.ndarray:
        return self._call(self._text, tokens)

    def _call(self, function: Any, rows: np.ndarray) -> np.ndarray:
        """Calls a function with always as many rows, so that it is compiled once."""
        found = []
        for first in range(0, len(rows), self.rows):
            part = rows[first : first + self.rows]
            count = len(part)
            part = np.concatenate([part, np.repeat(part[:1], self.rows - count, axis=0)])
            made = function(self._params, sharding.to_mesh(part, self._where))
            found.append(np.asarray(made)[:count])
        return np.concatenate(found)


def _items(source: Source, number: int) -> range:
    return range(number * _BLOCK, min((number + 1) * _BLOCK, len(source)))


def _images(
    source: Source, resolution: int, index: int
) -> tuple[UInt8[np.ndarray, "2 h w 3"], Record]:
    """An item's image and its mirror image, as examples have them, and the item."""
    record = source[index]
    image = decode_image(record.image, record.id)
    both = [transforms.fit_image(image, resolution, flip=flip) for flip in (False, True)]
    return np.stack(both), record


def _encode(
    encoder: _Encoder,
    source: Source,
    tokenizer: Tokenizer,
    resolution: int,
    number: int,
    bar: tqdm,
) -> Block:
    tokens = [tokenize(tokenizer, "").input_ids]  # of captions that are dropped
    moments = []
    with ThreadPoolExecutor() as pool:
        # All of the block are asked for at once, and read while the devices encode.
        waiting = pool.map(partial(_images, source, resolution), _items(source, number))
        while found := list(itertools.islice(waiting, encoder.rows // 2)):
            for _, record in found:
                tokens += token_sequences(record, tokenizer)
            moments.append(encoder.moments(np.concatenate([both for both, _ in found])))
            bar.update(len(found))
    unique = np.unique(np.stack(tokens), axis=0)
    flat = np.concatenate(moments)
    return Block(flat.reshape(-1, 2, *flat.shape[1:]), encoder.text(unique), unique)
