"""Batches of training examples: shuffled, sharded over processes, resumable at any example."""

import dataclasses
import functools
import gc
import hashlib
import shutil
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int

from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import Tokenizer, load_tokenizer
from fd_jax.data.config import DataConfig
from fd_jax.data.crops import load_backdrop
from fd_jax.data.examples import Example, make_example
from fd_jax.data.ffhq.record import DataError
from fd_jax.data.ffhq.source import Source, has_split, open_source
from fd_jax.data.latent_cache import LatentCache
from fd_jax.errors import InputError

SHARED_MEMORY = Path("/dev/shm")

Shard = tuple[int, int]  # index of this process, number of processes


class Loader:
    """Iterates endlessly over this process's share of the batches.

    The order of the examples and every random draw depend on the seed and the position in that
    order, not on processes, workers or threads. Row j of process p of n is row j * n + p of the
    batch.

    Args:
        config: Config of the data.
        tokenizer_folder: CLIP tokenizer; by default the bundled one.
        seed: Seed of the order and of the examples.
        position: Number of examples, over all processes, to skip.
        training: Whether captions and subjects are dropped, images mirrored and crops augmented.
        shard: Index of this process and number of processes; by default JAX's.
        source: Items to load; by default `config.root` is opened.
        latent_cache: Posteriors and text embeddings of the items, see `make_example`.

    Attributes:
        source: The items.
        position: Number of examples handed out, over all processes.

    Raises:
        InputError: The data cannot be used, or the processes cannot share the batch evenly.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer_folder: Path | None,
        seed: int,
        *,
        position: int = 0,
        training: bool = True,
        shard: Shard | None = None,
        source: Source | None = None,
        latent_cache: LatentCache | None = None,
    ):
        process, count = _shard(config, shard)
        self.position = position
        self._batch_size = config.batch_size
        self.source = open_source(config.root, config.split) if source is None else source
        self._epoch = epoch_indices(self.source, config).tolist()
        make = _MakeExample(self.source, config, tokenizer_folder, training, latent_cache)
        examples = grain.MapDataset.source(self._epoch).seed(seed).shuffle().repeat()
        examples = examples.random_map(make)[position + process :: count]
        self._is_copied = config.num_workers > 0
        self._iterator = [_batches(examples, config, config.batch_size // count)]
        self._end = weakref.finalize(self, _end, self._iterator, self._is_copied)

    @property
    def num_examples(self) -> int:
        """Examples per epoch."""
        return len(self._epoch)

    @property
    def fingerprint(self) -> dict[str, int | str]:
        """Number and SHA-256 of the ids of an epoch in order, to recognize other data.

        It does not depend on the path of a root, nor on whether that is a folder or a dataset.
        """
        return fingerprint(self.source, self._epoch)

    def ids(self, index: Int[np.ndarray, " n"] | Sequence[int]) -> list[str]:
        """Returns the ids of items by their `Example.index`."""
        return [self.source.ids[i] for i in np.asarray(index)]

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        """Returns the next batch. Raises DataError if an item of it cannot be used."""
        if not self._iterator:
            raise StopIteration
        batch = next(self._iterator[0])
        if self._is_copied:
            # Memory shared with the workers, which reuse it.
            batch = jax.tree.map(np.array, batch)
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """Stops threads and worker processes; iteration ends."""
        self._end()


def _end(iterator: list[grain.DatasetIterator], has_workers: bool) -> None:
    # Iterators of Grain that live until Python exits log errors and leak shared memory.
    iterator.pop().close()
    if has_workers:
        gc.collect()


def held_out(
    config: DataConfig,
    tokenizer_folder: Path | None,
    *,
    seed: int,
    shard: Shard | None = None,
) -> Iterator[Example]:
    """Yields this process's share of the held-out batches, the same at each call.

    They hold each item of the test split once, in order; the last batch is filled up from the
    first items. Nothing is dropped, mirrored or augmented. Without test items there is no batch.

    Args:
        config: Config of the data.
        tokenizer_folder: CLIP tokenizer; by default the bundled one.
        seed: Seed of the noise in crops.
        shard: Index of this process and number of processes; by default JAX's.

    Raises:
        InputError: The data cannot be used, or the processes cannot share the batch evenly.
    """
    process, count = _shard(config, shard)
    roots = [root for root in config.root if has_split(root, "test")]
    if not roots:
        return iter(())
    source = open_source(roots, "test")
    epoch = epoch_indices(source, dataclasses.replace(config, balance_subjects=False)).tolist()
    make = _MakeExample(source, config, tokenizer_folder, training=False)
    size = config.batch_size

    def batches() -> Iterator[Example]:
        for start in range(0, len(epoch), size):
            rows = [
                make(epoch[i % len(epoch)], np.random.default_rng((seed, i)))
                for i in range(start + process, start + size, count)
            ]
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    return batches()


def epoch_indices(source: Source, config: DataConfig) -> Int[np.ndarray, " n"]:
    """Returns the indices of an epoch's items, in order, repeated where they are balanced.

    Raises:
        DataError: No item has enough subjects.
    """
    indices = np.arange(len(source))
    if not config.min_subjects and not config.balance_subjects:
        return indices
    counts = source.num_subjects(config.object_types)
    indices = indices[counts >= config.min_subjects]
    if not len(indices):
        raise DataError(
            f"none of {len(source)} items has {config.min_subjects} subjects of type "
            f"{' or '.join(config.object_types)}, expected some; the most is {counts.max()}"
        )
    if not config.balance_subjects:
        return indices
    # An item with more subjects than are kept counts as one with as many as are kept.
    kept = np.minimum(counts[indices], config.max_subjects)
    groups = [indices[kept == count] for count in np.unique(kept)]
    longest = max(map(len, groups))
    return np.sort(np.concatenate([np.resize(group, longest) for group in groups]))


def fingerprint(source: Source, epoch: Sequence[int]) -> dict[str, int | str]:
    """Returns number and SHA-256 of an epoch's ids, in order."""
    plain = [f"{i}/{name}" for i, ids in enumerate(source.ids_by_root) for name in ids]
    ids = "\n".join(plain[index] for index in epoch)
    return {"count": len(epoch), "sha256": hashlib.sha256(ids.encode()).hexdigest()}


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


class _MakeExample:
    """Reads an item and makes an example of it. Pickled without its tokenizer."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        tokenizer_folder: Path | None,
        training: bool,
        latent_cache: LatentCache | None = None,
    ):
        self._arguments = (source, config, tokenizer_folder, training, latent_cache)
        self._source = source
        self._config = config
        self._training = training
        self._latent_cache = latent_cache
        self._tokenizer = _tokenizer(tokenizer_folder or TOKENIZER)
        self._backdrop = None
        if config.crops == "portrait" and config.backdrop is not None:
            self._backdrop = load_backdrop(config.backdrop)

    def __reduce__(self):
        return _MakeExample, self._arguments

    def __call__(self, index: int, rng: np.random.Generator) -> Example:
        return make_example(
            self._source[index],
            self._config,
            self._tokenizer,
            rng,
            training=self._training,
            backdrop=self._backdrop,
            latent_cache=self._latent_cache,
        )


def _shard(config: DataConfig, shard: Shard | None) -> Shard:
    """Returns index and number of processes. Raises InputError if they divide no batch evenly."""
    process, count = shard or (jax.process_index(), jax.process_count())
    if config.batch_size % count:
        raise InputError(
            f"batch_size is {config.batch_size}, expected a multiple of {count}, the processes"
        )
    return process, count


def _check_shared_memory(config: DataConfig, size: int) -> None:
    """Raises InputError if the batches exceed shared memory, of which workers die silently."""
    bytes_each = 4 * config.resolution**2 + 3 * config.max_subjects * config.subject_resolution**2
    # Prefetched batches, one being made and one being read.
    needed = config.num_workers * (config.prefetch + 2) * size * bytes_each
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise InputError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, expected {needed >> 20} MiB for "
            f"{config.num_workers} workers: take fewer (num_workers), or threads (num_workers 0), "
            "or enlarge it (--shm-size of a container)"
        )


def _batches(examples: grain.MapDataset, config: DataConfig, size: int) -> grain.DatasetIterator:
    """Iterates over batches, which do not depend on how they are loaded."""
    if not config.num_workers:
        options = grain.ReadOptions(
            num_threads=config.num_threads, prefetch_buffer_size=config.prefetch * size
        )
        return iter(examples.to_iter_dataset(options).batch(size, drop_remainder=True))
    _check_shared_memory(config, size)
    if not flags.FLAGS.is_parsed():  # Grain reads an absl flag, which only absl.app parses
        flags.FLAGS.mark_as_parsed()
    # Batch before prefetching: workers that receive single examples would form other batches.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    workers = grain.MultiprocessingOptions(
        num_workers=config.num_workers, per_worker_buffer_size=config.prefetch
    )
    batches = examples.batch(size, drop_remainder=True).to_iter_dataset(options)
    return iter(batches.mp_prefetch(workers))
