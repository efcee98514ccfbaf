"""Batches of training examples: shuffled, dealt out to processes, resumable at any example."""

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
from fd_jax.config import Config
from fd_jax.data.captions import MAX_SUBJECTS, Tokenizer, load_tokenizer
from fd_jax.data.examples import Crops, Example, make_example
from fd_jax.data.ffhq.folder import Source, Split, has_split, open_source
from fd_jax.data.ffhq.record import DataError
from fd_jax.data.latent_cache import Encodings
from fd_jax.data.photographs import MAX_SUBJECT_RESOLUTION
from fd_jax.errors import InputError

SHARED_MEMORY = Path("/dev/shm")

Shard = tuple[int, int]  # which of how many processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which photographs are learnt from, and what of them is seen."""

    root: tuple[Path, ...] = ()
    """Folders in the layout of FFHQ-FastComposer, or TFDS datasets that
    `python -m fd_jax.data.ffhq build` made of them; several are joined."""
    split: Split = "train"
    """Which of a root's lists of ids is learnt from. The test list is what is held out."""
    batch_size: int = 16
    """Examples per step, those of all processes together."""
    resolution: int = 512
    """Side of the images in pixels."""
    subject_resolution: int = 224
    """Side of the subjects' crops in pixels."""
    max_subjects: int = 4
    """Subjects per image, the rest being left out by chance; 0 learns from captions alone."""
    caption_drop_prob: float = 0.1
    """How often an image is seen without caption and subjects."""
    subject_keep_prob: float = 0.9
    """How often each subject is kept otherwise."""
    object_types: tuple[str, ...] = ("person",)
    """Kinds of segments that are subjects, by their coco_label."""
    min_subjects: int = 0
    """Images with fewer subjects are left out."""
    balance_subjects: bool = False
    """Repeat images so that all numbers of subjects, up to max-subjects, are as frequent."""
    augment: bool = True
    """Crop, rotate, recolour, blur and bend the subjects at random."""
    crops: Crops = "noise"
    """What is around subjects in their crops: noise in their box, as in the released code; or the
    room and the backdrop of a portrait, for an image encoder that is trained from scratch."""
    flip: bool = True
    """Mirror every other image."""
    num_workers: int = 0
    """Processes that load examples, on each host; 0 loads them in threads."""
    num_threads: int = 8
    """Threads that load examples where num-workers is 0."""
    prefetch: int = 2
    """Batches that are loaded ahead: by the threads together, or by each process."""
    encodings: Path | None = None
    """Folder of what the frozen autoencoder and text encoder make of the data, written before the
    first step unless it is there, and read in place of images from then on (tdm, sdm)."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("batch_size", "num_threads", "prefetch"):
            self.require(name, 1)
        self.require("resolution", 8, 8192)
        self.require("subject_resolution", 2, MAX_SUBJECT_RESOLUTION)
        self.require("max_subjects", 0, MAX_SUBJECTS)
        for name in ("caption_drop_prob", "subject_keep_prob"):
            self.require(name, 0, 1)
        for name in ("min_subjects", "num_workers"):
            self.require(name, 0)
        if not self.object_types:
            raise InputError("DataConfig: object_types is empty, expected a label such as person")


class Loader:
    """Iterates for ever over this process's share of the batches.

    The order of the examples, and all that is drawn for one, depend on the seed and its place in
    the order, not on processes, workers or threads. Row j of process p of n is row j * n + p of
    the batch.

    Args:
        config: The data.
        tokenizer_folder: A CLIP tokenizer; by default the one that comes with this package.
        seed: Of the order and of the examples.
        position: How many examples, of all processes, came before the first one of this loader.
        training: Whether examples are dropped, mirrored and augmented.
        shard: This process and the number of processes; by default JAX's.
        encodings: Of the items, see `make_example`.

    Attributes:
        source: The items.
        position: How many examples of all processes have been handed out.

    Raises:
        InputError: The data cannot be used, or the batch cannot be divided by the processes.
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
        encodings: Encodings | None = None,
    ):
        process, count = _divide(config, shard)
        self.position = position
        self._batch_size = config.batch_size
        self.source = open_source(config.root, config.split)
        self._numbers = choose(self.source, config).tolist()
        make = _Make(self.source, config, tokenizer_folder or TOKENIZER, training, encodings)
        examples = grain.MapDataset.source(self._numbers).seed(seed).shuffle().repeat()
        examples = examples.random_map(make)[position + process :: count]
        self._is_copied = config.num_workers > 0
        self._iterator = [_batches(examples, config, config.batch_size // count)]
        self._end = weakref.finalize(self, _end, self._iterator, self._is_copied)

    @property
    def num_examples(self) -> int:
        """Examples per epoch."""
        return len(self._numbers)

    @property
    def fingerprint(self) -> dict[str, int | str]:
        """What tells whether other data is the same: number and SHA-256 of the ids in order.

        Where a root lies, and whether it is a folder or a dataset, makes no difference.
        """
        plain = [f"{i}/{name}" for i, ids in enumerate(self.source.plain_ids) for name in ids]
        ids = "\n".join(plain[number] for number in self._numbers)
        return {"count": len(self._numbers), "sha256": hashlib.sha256(ids.encode()).hexdigest()}

    def ids(self, index: Int[np.ndarray, " n"] | Sequence[int]) -> list[str]:
        """Returns the ids of items, from `Example.index`."""
        return [self.source.ids[i] for i in np.asarray(index)]

    def __iter__(self) -> Iterator[Example]:
        return self

    def __next__(self) -> Example:
        """Returns the next batch. Raises DataError if an item of it cannot be used."""
        if not self._iterator:
            raise StopIteration
        batch = next(self._iterator[0])
        if self._is_copied:
            # Memory of the workers, which they fill again.
            batch = jax.tree.map(np.array, batch)
        self.position += self._batch_size
        return batch

    def close(self) -> None:
        """Ends threads and worker processes. No batch comes after."""
        self._end()


def _end(iterator: list[grain.DatasetIterator], has_workers: bool) -> None:
    # Grain's iterators complain, and leave shared memory behind, if they live until Python ends.
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
    """Yields this process's share of the held-out batches, the same each time.

    The items of the test split, in order, each once; the last batch is filled up from the first
    items. Nothing is dropped, mirrored or augmented. Without test items there is no batch, and a
    folder without a list of them has none.

    Raises:
        InputError: The data cannot be used, or the batch cannot be divided by the processes.
    """
    process, count = _divide(config, shard)
    roots = [root for root in config.root if has_split(root, "test")]
    if not roots:
        return iter(())
    source = open_source(roots, "test")
    numbers = choose(source, dataclasses.replace(config, balance_subjects=False)).tolist()
    make = _Make(source, config, tokenizer_folder or TOKENIZER, training=False)
    size = config.batch_size

    def batches() -> Iterator[Example]:
        for start in range(0, len(numbers), size):
            rows = [
                make(numbers[i % len(numbers)], np.random.default_rng((seed, i)))
                for i in range(start + process, start + size, count)
            ]
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    return batches()


def choose(source: Source, config: DataConfig) -> Int[np.ndarray, " n"]:
    """Returns the numbers of the items of an epoch, in order, repeated where they are balanced.

    Raises:
        DataError: No item has enough subjects.
    """
    numbers = np.arange(len(source))
    if not config.min_subjects and not config.balance_subjects:
        return numbers
    counts = source.num_subjects(config.object_types)
    numbers = numbers[counts >= config.min_subjects]
    if not len(numbers):
        raise DataError(
            f"none of {len(source)} items has {config.min_subjects} subjects of type "
            f"{' or '.join(config.object_types)}, expected some; the most is {counts.max()}"
        )
    if not config.balance_subjects:
        return numbers
    # More than can be kept are as good as those.
    kinds = np.minimum(counts[numbers], config.max_subjects)
    groups = [numbers[kinds == kind] for kind in np.unique(kinds)]
    longest = max(map(len, groups))
    return np.sort(np.concatenate([np.resize(group, longest) for group in groups]))


@functools.lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


class _Make:
    """Reads an item and makes an example of it. Pickled, it leaves its tokenizer behind."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        tokenizer_folder: Path,
        training: bool,
        encodings: Encodings | None = None,
    ):
        self._arguments = source, config, tokenizer_folder, training, encodings
        self._source, self._config, self._training = source, config, training
        self._encodings = encodings
        self._tokenizer = _tokenizer(tokenizer_folder)

    def __reduce__(self):
        return _Make, self._arguments

    def __call__(self, number: int, rng: np.random.Generator) -> Example:
        record = self._source[number]
        return make_example(
            *(record, self._config, self._tokenizer, rng),
            training=self._training,
            encodings=self._encodings,
        )


def _divide(config: DataConfig, shard: Shard | None) -> Shard:
    """This process and the number of processes, which share a batch evenly."""
    process, count = shard or (jax.process_index(), jax.process_count())
    if config.batch_size % count:
        raise InputError(
            f"batch_size is {config.batch_size}, expected a multiple of {count}, the processes"
        )
    return process, count


def _check_shared_memory(config: DataConfig, size: int) -> None:
    """Raises InputError if the workers' batches would not fit, of which they would die unheard."""
    bytes_each = 4 * config.resolution**2 + 3 * config.max_subjects * config.subject_resolution**2
    # Those ahead, one being made and one being read.
    needed = config.num_workers * (config.prefetch + 2) * size * bytes_each
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < needed:
        raise InputError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, expected {needed >> 20} MiB for "
            f"{config.num_workers} workers: take fewer (num_workers), or threads (num_workers 0), "
            "or enlarge it (--shm-size of a container)"
        )


def _batches(examples: grain.MapDataset, config: DataConfig, size: int) -> grain.DatasetIterator:
    """An iterator over batches, the same ones however they are loaded."""
    if not config.num_workers:
        options = grain.ReadOptions(
            num_threads=config.num_threads, prefetch_buffer_size=config.prefetch * size
        )
        return iter(examples.to_iter_dataset(options).batch(size, drop_remainder=True))
    _check_shared_memory(config, size)
    if not flags.FLAGS.is_parsed():  # Grain asks absl for a flag, which only absl's app parses
        flags.FLAGS.mark_as_parsed()
    # Batches come first, as workers that are dealt single examples would group others.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    workers = grain.MultiprocessingOptions(
        num_workers=config.num_workers, per_worker_buffer_size=config.prefetch
    )
    batches = examples.batch(size, drop_remainder=True).to_iter_dataset(options)
    return iter(batches.mp_prefetch(workers))
