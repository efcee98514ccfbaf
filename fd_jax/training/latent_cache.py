"""Encodes the training data once, for training with a frozen VAE and a frozen text encoder."""

import hashlib
import itertools
from collections.abc import Callable, Collection
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
from fd_jax.compilation import compiler_options
from fd_jax.config import differences
from fd_jax.data import transforms
from fd_jax.data.captions import Tokenizer, tokenize
from fd_jax.data.config import DataConfig
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
from fd_jax.images.pixels import to_signed
from fd_jax.networks import Networks
from fd_jax.params import Flat

_BLOCK = 256  # items per file
_ROWS = 4  # images or captions per device and call, as the training state shares its memory
_ENCODERS = ("vae", "text_encoder")


def check(folder: Path | None, trained: Collection[str], *, needs_images: bool) -> None:
    """Raises InputError if a latent cache cannot replace the images of a run.

    Args:
        folder: Folder of the cache, or None without one.
        trained: Paths of the parameters that train.
        needs_images: Whether the task's loss reads images.
    """
    if folder is None:
        return
    if needs_images:
        raise InputError(
            "data.latent_cache is set, expected none: an autoencoder is trained on images"
        )
    for part in _ENCODERS:
        if any(path.startswith(f"{part}/") for path in trained):
            raise InputError(
                f"data.latent_cache is set, expected none: {part} trains, by optimizer.train, so "
                "that its output changes"
            )
    check_folder(folder)


def build(
    config: DataConfig, source: Source, tokenizer: Tokenizer, networks: Networks, frozen: Flat
) -> LatentCache:
    """Encodes all items that the cache lacks. All processes call this, and share the folder.

    Every process encodes blocks of its own, on its own devices.

    Args:
        config: Config of the data, with `latent_cache` set.
        source: Items.
        tokenizer: Tokenizer of their captions.
        networks: Networks.
        frozen: Parameters that do not train, on the mesh of all processes.

    Raises:
        InputError: The folder is the cache of other data or encoders, or cannot be used.
        DataError: An item cannot be used.
    """
    if config.latent_cache is None:
        raise ValueError("latent_cache is None, expected a folder")
    folder = config.latent_cache
    leaves = {
        path: sharding.to_host(leaf)
        for path, leaf in sorted(frozen.items())
        if path.startswith(tuple(f"{part}/" for part in _ENCODERS))
    }
    _check_info(folder, _info(config.resolution, source, leaves, networks))
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
                block = _encode(encoder, source, tokenizer, config.resolution, number, bar)
                write_block(folder, number, block)
    if count > 1:
        multihost_utils.sync_global_devices("latent_cache")
    if lost := [number for number in numbers if not has_block(folder, number)]:
        raise InputError(
            f"{folder} lacks {len(lost)} of {len(numbers)} blocks, expected a folder that all "
            "processes share"
        )
    return LatentCache(folder, _BLOCK)


def _info(resolution: int, source: Source, leaves: Flat, networks: Networks) -> dict[str, Any]:
    """Returns everything that the contents of a cache depend on."""
    ids = hashlib.sha256()
    for name in (name for names in source.ids_by_root for name in names):
        ids.update(f"{name}\n".encode())
    weights = hashlib.sha256()
    for path, leaf in leaves.items():
        weights.update(path.encode())
        weights.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return {
        "items": len(source),
        "ids": ids.hexdigest(),
        "encoders": weights.hexdigest(),
        "resolution": resolution,
        "dtype": str(networks.dtype),
        "block": _BLOCK,
    }


def _check_info(folder: Path, info: dict[str, Any]) -> None:
    """Writes what a new cache depends on. Raises InputError if an old one depends on other data."""
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
    """VAE encoder and text encoder, replicated on the devices of this process."""

    def __init__(self, networks: Networks, leaves: Flat):
        mesh = sharding.make_mesh(jax.local_devices())
        self._batched = sharding.batched(mesh)
        self.rows = _ROWS * mesh.size
        self._params = sharding.to_mesh(params.nested(leaves), sharding.replicated(mesh))

        def posterior(params: dict, images: UInt8[Array, "b h w 3"]) -> Array:
            with sharding.on_mesh(mesh):
                vae = networks.vae.bind(params["vae"])
                encoded = vae.encode(to_signed(images))
            return jnp.concatenate(encoded, axis=-1).astype(networks.dtype)

        def text(params: dict, tokens: Int32[Array, "b n"]) -> Array:
            encoder = networks.text_encoder.bind(params["text_encoder"])
            return encoder(tokens).astype(networks.dtype)

        options = compiler_options(mesh, networks.dtype)
        self._posterior = jax.jit(posterior, compiler_options=options)
        self._text = jax.jit(text, compiler_options=options)

    def posterior(self, images: UInt8[np.ndarray, "b h w 3"]) -> np.ndarray:
        return self._call(self._posterior, images)

    def text(self, tokens: Int32[np.ndarray, "b n"]) -> np.ndarray:
        return self._call(self._text, tokens)

    def _call(self, function: Callable[..., Array], rows: np.ndarray) -> np.ndarray:
        """Calls a function on batches of one size, so that it is compiled once."""
        found = []
        for first in range(0, len(rows), self.rows):
            part = rows[first : first + self.rows]
            count = len(part)
            part = np.concatenate([part, np.repeat(part[:1], self.rows - count, axis=0)])
            made = function(self._params, sharding.to_mesh(part, self._batched))
            found.append(np.asarray(made)[:count])
        return np.concatenate(found)


def _items(source: Source, number: int) -> range:
    return range(number * _BLOCK, min((number + 1) * _BLOCK, len(source)))


def _images(
    source: Source, resolution: int, index: int
) -> tuple[UInt8[np.ndarray, "2 h w 3"], Record]:
    """Returns an item's image and its mirror image, as in examples, and the item."""
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
    tokens = [tokenize(tokenizer, "").input_ids]  # of dropped captions
    posteriors = []
    with ThreadPoolExecutor() as pool:
        # All of the block are submitted at once, and read while the devices encode.
        waiting = pool.map(partial(_images, source, resolution), _items(source, number))
        while found := list(itertools.islice(waiting, encoder.rows // 2)):
            for _, record in found:
                tokens += token_sequences(record, tokenizer)
            posteriors.append(encoder.posterior(np.concatenate([both for both, _ in found])))
            bar.update(len(found))
    unique = np.unique(np.stack(tokens), axis=0)
    flat = np.concatenate(posteriors)
    return Block(flat.reshape(-1, 2, *flat.shape[1:]), encoder.text(unique), unique)
