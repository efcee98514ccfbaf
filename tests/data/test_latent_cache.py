"""Blocks of the latent cache: what is written is read, and nothing damaged is."""

import numpy as np
import pytest

from fd_jax.data.ffhq.record import DataError
from fd_jax.data.latent_cache import (
    Block,
    LatentCache,
    has_block,
    read_block,
    read_info,
    write_block,
    write_info,
)
from fd_jax.errors import InputError
from tests.helpers.latent_blocks import random_block


@pytest.fixture
def folder(tmp_path):
    for number in range(2):
        write_block(tmp_path, number, random_block(number))
    return tmp_path


def test_a_block_is_read_as_it_was_written(folder):
    assert has_block(folder, 1)
    assert not has_block(folder, 2)
    expected, found = random_block(1), read_block(folder, 1)
    np.testing.assert_array_equal(found.posterior, expected.posterior.view(np.uint16))
    np.testing.assert_array_equal(found.texts, expected.texts)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"0000{number}_{name}"
        for number in range(2)
        for name in ("checksums.json", "posterior.npy", "texts.npy", "tokens.npy")
    ]


@pytest.mark.parametrize("name", Block._fields)
@pytest.mark.parametrize("place", [-1, -40, 150])
def test_a_flipped_bit_is_noticed_and_named(folder, name, place):
    path = folder / f"00001_{name}.npy"
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"00001_{name}.npy of the latent cache is damaged"):
        LatentCache(folder, 3).posterior(4, flip=False)
    assert LatentCache(folder, 3).posterior(2, flip=True).shape == (4, 4, 8)


@pytest.mark.parametrize("change", ["swap", "shape", "dtype", "cut", "empty", "missing", "order"])
def test_other_arrays_are_noticed(folder, change):
    path = folder / "00001_texts.npy"
    array = np.load(path)
    if change == "swap":
        path.write_bytes((folder / "00000_texts.npy").read_bytes())
    elif change == "shape":
        np.save(path, array.reshape(3, 6, 77))
    elif change == "dtype":
        np.save(path, array.view(np.int32))
    elif change == "order":
        np.save(path, array[[1, 0, 2]])
    elif change == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] if change == "cut" else b"")
    with pytest.raises(DataError, match=r"00001_texts.npy of the latent cache is damaged or miss"):
        read_block(folder, 1)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000])
def test_damaged_checksums_are_named(folder, content):
    (folder / "00001_checksums.json").write_bytes(content)
    with pytest.raises(DataError, match=r"00001_\w+.* of the latent cache is damaged"):
        read_block(folder, 1)


def test_a_block_without_checksums_is_not_whole(folder):
    """As a process leaves it that is killed while it writes."""
    (folder / "00001_checksums.json").unlink()
    assert not has_block(folder, 1)
    write_block(folder, 1, random_block(1))
    assert has_block(folder, 1)


def test_a_cache_of_another_version_is_refused(tmp_path):
    assert read_info(tmp_path) is None
    write_info(tmp_path, {"items": 3})
    assert read_info(tmp_path) == {"items": 3}
    (tmp_path / "encodings.json").write_text("{}")
    with pytest.raises(InputError, match=r"latent cache of version 0\.1"):
        read_info(tmp_path)
