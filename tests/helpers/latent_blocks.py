"""Small blocks of the latent cache."""

import ml_dtypes
import numpy as np

from fd_jax.data.latent_cache import Block, write_block


def random_block(seed=0):
    """Three items, bfloat16 posteriors and float32 text embeddings."""
    rng = np.random.default_rng(seed)
    posterior = rng.normal(size=(3, 2, 4, 4, 8)).astype(ml_dtypes.bfloat16)
    texts = rng.normal(size=(3, 77, 6)).astype(np.float32)
    return Block(posterior, texts, rng.integers(0, 99, (3, 77), dtype=np.int32))


def make_block(folder, number=0, seed=0):
    folder.mkdir(exist_ok=True)
    write_block(folder, number, random_block(seed))
