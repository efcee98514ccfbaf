"""A run computes the same whatever surrounds it: settings of JAX, threads, signals."""

import contextlib
import signal
import threading
import warnings

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.errors import InputError
from fd_jax.numerics import pinned, seed_key
from fd_jax.training import trainer
from fd_jax.training.signals import SignalGuard
from fd_jax.training.trainer import train
from tests.helpers.training import make_config, make_task, random_batch, read_losses, to_jax

# Settings that change draws, dtypes or products where they are not pinned.
SETTINGS = {
    "64 bits": ("jax_enable_x64", True),
    "other random numbers": ("jax_default_prng_impl", "rbg"),
    "random numbers of older versions": ("jax_threefry_partitionable", False),
    "short products": ("jax_default_matmul_precision", "bfloat16"),
    "strict promotion": ("jax_numpy_dtype_promotion", "strict"),
    "another seed": ("jax_random_seed_offset", 7),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    """Changes a global setting of JAX while a test runs."""
    name, value = SETTINGS[request.param]
    with changed({name: value}):
        yield name


@contextlib.contextmanager
def changed(settings):
    """Changes global settings of JAX until the block ends."""
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    make_mesh = sharding.make_mesh
    monkeypatch.setattr(
        sharding, "make_mesh", lambda _=None, *, fsdp=1: make_mesh(jax.devices()[:1], fsdp=fsdp)
    )
    monkeypatch.setattr(trainer, "count_step_flops", lambda *_: 1)  # counting takes time


def draw():
    with pinned("float32"):
        task, batch = make_task(), to_jax(random_batch(3))
        draws = jax.jit(task.draw)(seed_key(2**32 - 1), batch)
        return jax.tree.map(np.asarray, draws)


DRAWS = draw()


def test_draws_are_the_same_under_all_settings(setting):
    found = draw()
    for name, array in DRAWS._asdict().items():
        other = getattr(found, name)
        assert other.dtype == array.dtype
        np.testing.assert_array_equal(other, array, err_msg=f"{name} under {setting}")


def test_the_key_of_a_seed_is_that_of_jax():
    for seed in (0, 42, 2**32 - 1):
        expected = jax.random.key(np.uint32(seed), impl="threefry2x32")
        assert (jax.random.key_data(seed_key(seed)) == jax.random.key_data(expected)).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps under the default settings."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        one = jax.devices()[:1]
        make_mesh = sharding.make_mesh
        patch.setattr(sharding, "make_mesh", lambda _=None, *, fsdp=1: make_mesh(one, fsdp=fsdp))
        patch.setattr(trainer, "count_step_flops", lambda *_: 1)
        assert train(make_config(), workdir) is None
    return workdir


@pytest.mark.slow
def test_losses_are_the_same_under_all_settings_also_after_a_resume(whole, tmp_path):
    assert train(make_config(loop__num_steps=2), tmp_path) is None
    with changed(dict(SETTINGS.values())):
        assert train(make_config(), tmp_path) is None
    assert read_losses(tmp_path) == read_losses(whole)


@pytest.mark.slow
def test_a_thread_may_train_and_leaves_the_process_as_it_was(whole, tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    filters, show = list(warnings.filters), warnings.showwarning
    results = []
    thread = threading.Thread(target=lambda: results.append(train(make_config(), tmp_path)))
    thread.start()
    thread.join()
    assert results == [None]
    assert read_losses(tmp_path) == read_losses(whole)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert warnings.filters == filters
    assert warnings.showwarning is show
    assert not [t for t in threading.enumerate() if t.name == "run lock"]


def test_signals_outside_of_the_main_thread_keep_their_handlers():
    seen, before = [], signal.getsignal(signal.SIGTERM)

    def guard():
        with SignalGuard() as guarded:
            seen.extend([signal.getsignal(signal.SIGTERM), guarded.signal])

    thread = threading.Thread(target=guard)
    thread.start()
    thread.join()
    assert seen == [before, None]
    with SignalGuard() as guarded:
        assert signal.getsignal(signal.SIGTERM) != before
        signal.raise_signal(signal.SIGTERM)
        assert guarded.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_run_in_a_folder_is_refused_and_the_first_goes_on(tmp_path, monkeypatch):
    original, refused = trainer.restore_state, []

    def restore(workdir, *args):
        with pytest.raises(InputError, match="is in use: process") as error:
            train(make_config(), workdir)
        refused.append(str(error.value))
        return original(workdir, *args)

    monkeypatch.setattr(trainer, "restore_state", restore)
    assert train(make_config(), tmp_path) is None
    assert len(refused) == 1
    assert "\n" not in refused[0]
    assert len(read_losses(tmp_path)) == 4
    assert not (tmp_path / "lock.json").exists()
