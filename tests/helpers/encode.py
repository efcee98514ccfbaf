"""Encodes photographs into a latent cache of small blocks: python -m tests.helpers.encode OUT"""

import dataclasses
import pathlib
import sys
import tempfile

from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.ffhq.source import open_source
from fd_jax.networks import make_networks
from fd_jax.training import latent_cache
from tests.helpers.ffhq_items import item, write_folder
from tests.helpers.networks import TINY
from tests.helpers.training import make_config, random_leaves, to_jax

ITEMS, BLOCK = 12, 2


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    latent_cache._BLOCK = BLOCK
    with tempfile.TemporaryDirectory() as photos:
        root = write_folder(pathlib.Path(photos), [item(2, seed=i) for i in range(ITEMS)])
        latent_cache.build(
            dataclasses.replace(make_config().data, root=(root,), latent_cache=folder),
            open_source([root], "train"),
            load_tokenizer(TOKENIZER),
            make_networks(TINY),
            to_jax(random_leaves()),
        )


if __name__ == "__main__":
    main()
