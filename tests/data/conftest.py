"""What the tests of training data share."""

import pytest

from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import load_tokenizer
from tests.helpers.ffhq_items import item, write_folder


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(TOKENIZER)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Ten items with 0, 1, 1, 1, 2, 2, 3, 1, 1, 5 people: seven to train, three to test."""
    counts = (0, 1, 1, 1, 2, 2, 3, 1, 1, 5)
    sizes = ((32, 48), (48, 40), (40, 40))
    items = [
        item(count, height=sizes[i % 3][0], width=sizes[i % 3][1], seed=i)
        for i, count in enumerate(counts)
    ]
    root = tmp_path_factory.mktemp("photographs")
    return write_folder(root, items, train=range(7), test=(9, 7, 8))
