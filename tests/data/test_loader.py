import collections
import dataclasses
import hashlib
import shutil

import jax
import numpy as np
import pytest

from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.record import DataError
from fd_jax.data.loader import Loader, held_out
from fd_jax.errors import InputError
from tests.helpers.ffhq_items import item, write_folder

TINY = {"resolution": 16, "subject_resolution": 8, "num_threads": 2}


@pytest.fixture
def load(folder):
    """Makes loaders of the shared folder, and closes them."""
    loaders = []

    def load(*, seed=0, position=0, shard=(0, 1), root=folder, training=True, **changes):
        config = DataConfig(root=(root,), **TINY | {"batch_size": 4} | changes)
        loaders.append(
            Loader(config, None, seed, position=position, training=training, shard=shard)
        )
        return loaders[-1]

    yield load
    for loader in loaders:
        loader.close()


def take(loader, count):
    return [next(loader) for _ in range(count)]


def assert_equal(first, second):
    for one, two in zip(first, second, strict=True):
        for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
            np.testing.assert_array_equal(a, b)


def dealt(shares):
    """The batches whose row j * n + p is row j of the share of process p of n."""
    return [
        jax.tree.map(lambda *x: np.stack(x, axis=1).reshape(-1, *x[0].shape[1:]), *batches)
        for batches in zip(*shares, strict=True)
    ]


def indices(batches):
    return np.concatenate([batch.index for batch in batches])


def test_batches(load):
    batch = next(load())

    shapes = [(array.shape, array.dtype.name) for array in jax.tree.leaves(batch)]
    assert shapes == [
        ((4, 16, 16, 3), "uint8"),
        ((4, 16, 16), "uint8"),
        ((4, 4, 8, 8, 3), "uint8"),
        ((4, 4), "uint8"),
        ((4, 77), "int32"),
        ((4, 4), "int32"),
        ((4, 4), "bool"),
        ((4,), "int32"),
    ]
    assert isinstance(batch, Example)
    for array in jax.tree.leaves(batch):
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous


def test_every_epoch_holds_every_item_in_another_order(load):
    loader = load(batch_size=1)

    epochs = indices(take(loader, 21)).reshape(3, 7)

    assert loader.num_examples == 7
    np.testing.assert_array_equal(np.sort(epochs), [range(7)] * 3)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_items_look_different_in_every_epoch(load):
    batches = take(load(batch_size=1, caption_drop_prob=0.0, flip=False), 21)
    views = collections.defaultdict(list)
    for batch in batches:
        views[int(batch.index[0])].append(batch)
    for index, (first, second, third) in views.items():
        np.testing.assert_array_equal(first.image, second.image)
        if index:  # the first item has no subjects
            pixels = [view.subject_pixels for view in (first, second, third)]
            assert (pixels[0] != pixels[1]).any() or (pixels[1] != pixels[2]).any()


def test_order_and_draws_depend_on_the_seed_alone(load):
    first, again, other = (take(load(seed=seed), 5) for seed in (3, 3, 4))
    assert_equal(first, again)
    assert (indices(first) != indices(other)).any()
    assert_equal(first, take(load(seed=3, num_threads=1, prefetch=5), 5))


def test_a_loader_goes_on_at_the_very_next_example(load):
    loader = load()
    batches = take(loader, 6)
    assert loader.position == 24

    assert_equal(batches[3:], take(load(position=12), 3))

    # With batches of another size it does so too.
    rest = take(load(position=8, batch_size=2), 4)
    np.testing.assert_array_equal(indices(rest), indices(batches[2:4]))
    np.testing.assert_array_equal(
        np.concatenate([batch.image for batch in rest]),
        np.concatenate([batch.image for batch in batches[2:4]]),
    )


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("position", [0, 8])
def test_any_number_of_processes_share_the_same_batches(load, count, position):
    alone = take(load(position=position), 4)

    shares = [take(load(position=position, shard=(p, count)), 4) for p in range(count)]

    assert {batch.image.shape[0] for share in shares for batch in share} == {4 // count}
    assert_equal(dealt(shares), alone)


def test_every_process_has_the_same_position(load):
    for shard in ((0, 2), (1, 2)):
        loader = load(shard=shard)
        take(loader, 3)
        assert loader.position == 12


@pytest.mark.slow
def test_worker_processes_change_nothing(load):
    expected = take(load(position=4), 5)

    loader = load(position=4, num_workers=2)
    found = take(loader, 5)
    loader.close()

    assert_equal(found, expected)
    for array in jax.tree.leaves(found[0]):
        assert type(array) is np.ndarray
        assert array.flags.owndata
    with pytest.raises(StopIteration):
        next(loader)


def test_a_dataset_gives_the_same_batches_as_its_folder(load, folder, tmp_path):
    tfds_dataset.build(folder, tmp_path)
    first, second = load(min_subjects=1), load(root=tmp_path, min_subjects=1)
    assert first.fingerprint == second.fingerprint
    assert_equal(take(first, 4), take(second, 4))


def test_the_fingerprint_tells_other_data(load, folder, tmp_path):
    found = load().fingerprint
    lines = "\n".join(f"0/0000000{i}" for i in range(7))
    assert found == {"count": 7, "sha256": hashlib.sha256(lines.encode()).hexdigest()}
    assert found == load(seed=3, batch_size=1).fingerprint

    shutil.copytree(folder, tmp_path / "moved")
    assert load(root=tmp_path / "moved").fingerprint == found
    assert load(split="all").fingerprint != found
    assert load(min_subjects=1).fingerprint != found
    (tmp_path / "moved" / "image_ids_train.txt").write_text("00000001\n00000000\n")
    assert load(root=tmp_path / "moved").fingerprint != found


def test_ids_of_a_batch(load):
    loader = load(split="test")
    batch = next(loader)
    names = ("00000009", "00000007", "00000008")
    assert loader.ids(batch.index) == [names[i] for i in batch.index]


def test_items_with_few_subjects_are_left_out(load):
    loader = load(min_subjects=2, batch_size=3)
    assert loader.num_examples == 3
    assert set(next(loader).index.tolist()) == {4, 5, 6}
    assert load(min_subjects=1).num_examples == 6
    with pytest.raises(DataError, match=r"none of 7 items has 4 subjects of type person, .* is 3"):
        load(min_subjects=4)
    with pytest.raises(DataError, match="none of 7 items has 1 subjects of type cat or dog"):
        load(min_subjects=1, object_types=("cat", "dog"))


def test_balancing_makes_all_numbers_of_subjects_as_frequent(load):
    loader = load(min_subjects=1, balance_subjects=True, batch_size=1)

    # One subject: items 1 to 3; two: 4, 5; three: 6.
    assert loader.num_examples == 9
    assert collections.Counter(indices(take(loader, 9)).tolist()) == {
        **{1: 1, 2: 1, 3: 1},
        **{4: 2, 5: 1},
        6: 3,
    }
    assert load(balance_subjects=True).num_examples == 12
    # All that have as many as are kept count the same.
    assert load(min_subjects=1, balance_subjects=True, max_subjects=2).num_examples == 6
    assert load(balance_subjects=True, max_subjects=0).num_examples == 7


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_item_stops_the_loader(load, tmp_path, num_workers):
    root = write_folder(tmp_path, [item(seed=1), item(seed=2, image=b"JPEG"), item(seed=3)])
    loader = load(root=root, num_workers=num_workers, batch_size=1)
    with pytest.raises(DataError, match="item 00000001: its image cannot be read"):
        take(loader, 3)
    loader.close()
    loader.close()  # once more does no harm


def test_what_cannot_be_loaded_is_refused_at_once(load, tmp_path):
    with pytest.raises(InputError, match="batch_size is 4, expected a multiple of 3, the proc"):
        load(shard=(0, 3))
    with pytest.raises(DataError, match="nowhere does not exist"):
        load(root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no root is given"):
        Loader(DataConfig(), None, 0)
    with pytest.raises(FileNotFoundError, match="tokenizer folder"):
        Loader(DataConfig(root=(write_folder(tmp_path, [item()]),)), tmp_path / "no", 0)


def test_workers_need_shared_memory(load, tmp_path, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr("fd_jax.data.loader.SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(
        InputError, match=f"{tmp_path} has 1 MiB free, expected .* MiB for 8 workers: take"
    ):
        load(num_workers=8, resolution=512)


def test_few_items_are_repeated_within_a_batch(load):
    batch = next(load(split="test", batch_size=8))
    assert set(np.bincount(batch.index)) == {2, 3}


def held(folder, *, seed=0, shard=(0, 1), **changes):
    config = DataConfig(root=(folder,), **TINY | {"batch_size": 2} | changes)
    return list(held_out(config, None, seed=seed, shard=shard))


def test_held_out_batches_come_in_order_filled_up_from_the_first(folder):
    batches = held(folder)

    np.testing.assert_array_equal([batch.index for batch in batches], [[0, 1], [2, 0]])
    np.testing.assert_array_equal(batches[0].has_subject.sum(axis=1), [4, 1])
    np.testing.assert_array_equal(batches[0].image[0], batches[1].image[1])
    [batch] = held(folder, batch_size=8)
    np.testing.assert_array_equal(batch.index, [0, 1, 2, 0, 1, 2, 0, 1])


def test_held_out_batches_are_the_same_each_time(folder):
    assert_equal(held(folder), held(folder))
    assert_equal(held(folder), held(folder, caption_drop_prob=1.0, balance_subjects=True))
    other = held(folder, seed=1)
    assert (other[0].subject_pixels != held(folder)[0].subject_pixels).any()
    np.testing.assert_array_equal(other[0].image, held(folder)[0].image)


def test_held_out_batches_are_shared_by_processes(folder):
    shares = [held(folder, batch_size=4, shard=(p, 2)) for p in range(2)]
    assert_equal(dealt(shares), held(folder, batch_size=4))
    with pytest.raises(InputError, match="expected a multiple of 2"):
        held(folder, batch_size=3, shard=(0, 2))


def test_without_held_out_items_there_is_no_batch(tmp_path):
    root = write_folder(tmp_path, [item()], train=[0], test=[])
    assert held(root) == []
    (root / "image_ids_test.txt").unlink()
    assert held(root) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0, expected a whole number, 1 or more"),
        ({"resolution": 7}, "resolution is 7, expected a whole number in 8..8192"),
        ({"subject_resolution": 1}, "subject_resolution is 1, expected a whole number in 2..4096"),
        ({"max_subjects": 5}, "max_subjects is 5, expected a whole number in 0..4"),
        ({"max_subjects": -1}, "max_subjects is -1"),
        ({"caption_drop_prob": 1.1}, "caption_drop_prob is 1.1, expected a finite number in 0..1"),
        ({"subject_keep_prob": -0.1}, "subject_keep_prob is -0.1"),
        ({"min_subjects": -1}, "min_subjects is -1, expected a whole number, 0 or more"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"num_threads": 0}, "num_threads is 0, expected a whole number, 1 or more"),
        ({"prefetch": 0}, "prefetch is 0, expected a whole number, 1 or more"),
        ({"object_types": ()}, r"object_types is \(\), expected a list of strings, 1 or more"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DataConfig(), **changes)
