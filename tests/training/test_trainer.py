"""Whole runs: stopped, resumed, moved to other devices, and spoilt in every way."""

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.run.orbax_arrays import describe
from fd_jax.checkpoints.weights import open_weights
from fd_jax.errors import CheckpointError, InputError
from fd_jax.params import flat
from fd_jax.training import trainer
from fd_jax.training.loop import NonFiniteError
from fd_jax.training.metrics import read_metrics
from fd_jax.training.prefetch import DevicePrefetcher
from fd_jax.training.trainer import train
from tests.helpers.training import make_config, read_losses


def on_few_devices(patch):
    """Makes meshes of one device, unless more are asked for."""
    make_mesh = sharding.make_mesh
    patch.setattr(
        sharding,
        "make_mesh",
        lambda devices=None, *, fsdp=1: make_mesh(jax.devices()[:fsdp], fsdp=fsdp),
    )


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    on_few_devices(monkeypatch)
    monkeypatch.setattr(trainer, "count_step_flops", lambda *_: 1)  # counting takes time


def parameters(workdir, **options):
    where = sharding.replicated(sharding.make_mesh())
    placement = Placement("float32", lambda path, shape: where)
    return {
        k: np.asarray(v)
        for k, v in flat(read_params(workdir, placement=placement, **options)).items()
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four steps that was never stopped."""
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        on_few_devices(patch)
        assert train(make_config(), workdir) is None
    return workdir


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_metrics_and_files(whole):
    lines = read_metrics(whole / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["loss"] == line["denoising_loss"]
        assert line["learning_rate"] == pytest.approx(1e-3)
        if line["step"] > 1:  # the first compiles
            assert 0 <= line["data_wait_share"] <= 1
            assert line["images_per_second"] > 0
            assert line["model_flops_per_second"] > 0
        assert line["model_flops_utilization"] is None  # of a CPU
    stored = json.loads((whole / "config.json").read_text())
    assert stored["settings"]["data"]["batch_size"] == 4
    assert stored["versions"]["jax"] == jax.__version__
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == ["2", "4"]


def test_a_run_that_goes_on_is_the_one_that_never_stopped(whole, tmp_path):
    """Also when it was stopped between checkpoints by a signal, which saves first."""
    assert train(make_config(loop__num_steps=2), tmp_path) is None
    assert train(make_config(loop__num_steps=3), tmp_path) is None
    assert train(make_config(), tmp_path) is None
    assert_equal(parameters(tmp_path), parameters(whole))
    assert_equal(parameters(tmp_path, ema=False), parameters(whole, ema=False))
    assert read_losses(tmp_path) == read_losses(whole)


@pytest.mark.slow
def test_a_signal_saves_first(whole, tmp_path, monkeypatch):
    number = signal.SIGTERM
    original, count = DevicePrefetcher.__next__, iter(range(10))

    def interrupted(feed):
        if next(count) == 2:
            signal.raise_signal(number)
        return original(feed)

    with monkeypatch.context() as patch:
        patch.setattr(DevicePrefetcher, "__next__", interrupted)
        assert train(make_config(), tmp_path) == number
    assert (tmp_path / "checkpoints" / "3").is_dir()
    assert signal.getsignal(number) == signal.SIG_DFL
    assert train(make_config(), tmp_path) is None
    assert_equal(parameters(tmp_path), parameters(whole))


def test_a_run_that_is_done_does_nothing(whole):
    before = (whole / "metrics.jsonl").read_text()
    assert train(make_config(), whole) is None
    assert (whole / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_moves_to_other_devices(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "checkpoints" / "4")
    before = parameters(tmp_path / "moved", ema=False)
    assert train(make_config(mesh__fsdp=4, loop__num_steps=4), tmp_path / "moved") is None
    assert read_losses(tmp_path / "moved") == pytest.approx(read_losses(whole), rel=1e-4)
    after, expected = parameters(tmp_path / "moved", ema=False), parameters(whole, ema=False)
    for path, leaf in expected.items():
        # Two steps of Adam are at most twice the learning rate.
        assert np.abs(after[path] - leaf).max() <= 2 * np.abs(before[path] - leaf).max() + 1e-6


def test_frozen_parameters_stay_as_they_are(whole):
    first = parameters(whole, step=2, ema=False)
    last = parameters(whole, step=4, ema=False)
    for path, leaf in first.items():
        is_trained = path.startswith("unet/")
        assert np.array_equal(last[path], leaf) != is_trained, path


def test_another_config_is_refused_with_the_difference(whole):
    for changes, message in (
        ({"optimizer__learning_rate": 2e-3}, "optimizer.learning_rate: 0.001 there, 0.002 here"),
        ({"loop__seed": 2}, "loop.seed: 1 there, 2 here"),
        ({"data__batch_size": 8}, "data.batch_size: 4 there, 8 here"),
    ):
        with pytest.raises(InputError, match=message):
            train(make_config(**changes), whole)


def test_other_data_is_refused(whole, tmp_path):
    shutil.copytree(make_config().data.root[0], tmp_path / "photos")
    (tmp_path / "photos" / "image_ids_train.txt").write_text("00000000\n")
    with pytest.raises(InputError, match="other data"):
        train(make_config(data__root=(tmp_path / "photos",)), whole)


@pytest.mark.slow
def test_the_best_is_kept(tmp_path):
    config = make_config(
        loop__num_steps=6, loop__checkpoint_every=1, loop__keep_latest=1, loop__keep_every=4
    )
    assert train(config, tmp_path) is None
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    found = read_losses(tmp_path)
    assert kept == {6, 4, min(found, key=found.get)}


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = make_config(optimizer__learning_rate=1e30, loop__checkpoint_every=1)
    with pytest.raises(NonFiniteError, match=r"step (\d)") as error:
        train(config, tmp_path)
    step = int(str(error.value).split()[1].rstrip(":"))
    dumped = json.loads((tmp_path / f"not_finite_step_{step}.json").read_text())
    assert len(dumped["ids"]) == 4
    assert set(dumped["ids"]) <= {"00000000", "00000001", "00000002"}
    newest = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert newest < step
    assert all(np.isfinite(leaf).all() for leaf in parameters(tmp_path, ema=False).values())
    assert str(newest) in str(error.value)


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    import orbax.checkpoint as ocp

    save, count = ocp.CheckpointManager.save, iter(range(10))

    def full(*args, **kwargs):
        if next(count) == 1:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        train(make_config(), tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in parameters(tmp_path, step=2).values())
    assert train(make_config(), tmp_path) is None


def test_a_checkpoint_of_another_architecture(whole, tmp_path):
    model = make_config().model
    other = dataclasses.replace(
        model, unet=dataclasses.replace(model.unet, block_out_channels=(8, 24))
    )
    config = dataclasses.replace(make_config(init__checkpoint=whole), model=other)
    with pytest.raises(
        InputError, match=r"`model` of the config does not fit .*block_out_channels"
    ):
        train(config, tmp_path)


@pytest.mark.slow
def test_an_sdm_may_begin_as_a_tdm(whole, tmp_path):
    """With the TDM's autoencoder, which it leaves as it is. Measured, and seen, on the way."""
    has_board = importlib.util.find_spec("tensorboardX") is not None
    sdm = make_config(
        task="sdm",
        init__checkpoint=whole,
        data__max_subjects=2,
        optimizer__train=(("unet/", 1.0), ("vae/", 1.0), ("image_encoder/", 1.0)),
        optimizer__learning_rate=0.0,
        optimizer__ema_decay=None,
        loop__num_steps=2,
        loop__eval_every=1,
        loop__eval_batches=1,
        loop__preview_every=2,
        preview__prompts=("a man <|image|>", "nobody"),
        preview__references=(make_config().data.root[0] / "00000" / "00000000.jpg",),
        preview__num_steps=2,
        log__tensorboard=has_board,
        loop__profile=(2, 5),
    )
    assert train(sdm, tmp_path) is None
    first, second = parameters(whole), parameters(tmp_path)
    for path, leaf in first.items():
        np.testing.assert_array_equal(second[path], leaf, err_msg=path)
    assert {path.split("/")[0] for path in second} > {path.split("/")[0] for path in first}
    frozen = describe(tmp_path / "frozen")
    assert {path for path in second if path.startswith("vae/")} <= set(frozen)

    lines = read_metrics(tmp_path / "metrics.jsonl")
    held_out = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    assert len(held_out) == 2
    assert held_out[0] == held_out[1]  # nothing moved, and the draws are the same
    assert any("localization_loss" in line for line in lines)
    assert (tmp_path / "previews" / "00000002.png").is_file()
    assert (tmp_path / "tensorboard").exists() == has_board
    assert any((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    """A run of two steps that trained the autoencoder alone. Measured, and seen, on the way."""
    workdir = tmp_path_factory.mktemp("autoencoder")
    config = make_config(
        task="vae",
        optimizer__train=(("vae/", 1.0),),
        loop__num_steps=2,
        loop__eval_every=2,
        loop__eval_batches=1,
        loop__preview_every=2,
        preview__references=(make_config().data.root[0] / "00000" / "00000000.jpg",),
    )
    with pytest.MonkeyPatch.context() as patch:
        on_few_devices(patch)
        patch.setattr(trainer, "count_step_flops", lambda *_: 1)
        assert train(config, workdir) is None
    return workdir


@pytest.mark.slow
def test_an_autoencoder_trains_alone(autoencoder):
    *lines, held_out = read_metrics(autoencoder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["latent_std"] > 0 and "denoising_loss" not in line for line in lines)
    assert held_out["held_out_latent_std"] > 0
    found = parameters(autoencoder, ema=False)
    assert {path.split("/")[0] for path in found} == {"vae"}
    assert (autoencoder / "previews" / "00000002.png").is_file()
    with pytest.raises(CheckpointError, match=r"trains a vae, expected a run that trains a sdm"):
        open_weights(autoencoder, task="sdm")


@pytest.mark.slow
def test_a_tdm_may_begin_with_an_autoencoder(autoencoder, tmp_path):
    """Which it leaves as it is, whatever the config says."""
    tdm = make_config(
        init__checkpoint=autoencoder,
        optimizer__train=(("unet/", 1.0), ("vae/", 1.0)),
        loop__num_steps=2,
    )
    assert train(tdm, tmp_path) is None
    found = parameters(tmp_path, ema=False)
    expected = parameters(autoencoder)
    assert_equal({path: found[path] for path in expected}, expected)
    assert {path.split("/")[0] for path in found} == {"unet", "vae", "text_encoder"}
    assert set(expected) <= set(describe(tmp_path / "frozen"))


@pytest.mark.slow
def test_an_autoencoder_goes_on_from_another_run(autoencoder, tmp_path):
    config = make_config(
        task="vae",
        init__checkpoint=autoencoder,
        optimizer__train=(("vae/", 1.0),),
        loop__num_steps=1,
        optimizer__learning_rate=0.0,
        optimizer__weight_decay=0.0,
    )
    assert train(config, tmp_path) is None
    found, expected = parameters(tmp_path), parameters(autoencoder)
    for path, leaf in expected.items():
        # The average of equal numbers is rounded.
        np.testing.assert_allclose(found[path], leaf, rtol=1e-5, atol=1e-7, err_msg=path)


def test_a_tdm_cannot_train_the_autoencoder_that_it_is_given(autoencoder, tmp_path):
    config = make_config(
        task="tdm",
        init__checkpoint=autoencoder,
        optimizer__train=(("vae/", 1.0),),
    )
    with pytest.raises(InputError, match=r"by which nothing trains: vae of .* stays frozen"):
        train(config, tmp_path)


BAD = {
    "missing folder": ({"data__root": None}, "nowhere"),
    "no folder": ({"data__root": ()}, "root"),
    "batch": (
        {"data__batch_size": 6, "mesh__fsdp": 4},
        "batch_size is 6, expected a multiple of 4",
    ),
    "parts": ({"compute__accumulation": 3}, "batch_size is 4, expected a multiple of 3"),
    "mesh": ({"mesh__fsdp": 9}, "fsdp is 9"),
    "resolution": ({"data__resolution": 18}, "resolution is 18, expected a multiple of 4"),
    "pattern": ({"optimizer__train": (("unett/", 1.0),)}, "'unett/' is found in no path"),
    "subjects": ({"task": "sdm"}, "max_subjects is 0"),
    "references": (
        {"preview__prompts": ("a <|image|>",), "loop__preview_every": 1},
        "0 references",
    ),
    "prompts": (
        {"task": "vae", "preview__prompts": ("a man",)},
        r"preview.prompts is \('a man',\), expected none for a vae",
    ),
    "photographs": (
        {
            "task": "vae",
            "optimizer__train": (("vae/", 1.0),),
            "preview__references": (pathlib.Path("no.jpg"),),
            "loop__preview_every": 1,
        },
        "no.jpg does not exist",
    ),
    "base": ({"init__base": None}, "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named_before_anything_is_computed(tmp_path, monkeypatch, case):
    changes, message = BAD[case]
    nowhere = tmp_path / "nowhere"
    replaced = {
        name: ((nowhere,) if name == "data__root" else nowhere) if value is None else value
        for name, value in changes.items()
    }
    config = make_config(**replaced)
    monkeypatch.setattr(trainer, "restore_state", None)
    with pytest.raises((InputError, FileNotFoundError), match=message):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_nothing_to_begin_with(tmp_path):
    config = dataclasses.replace(make_config(), model=None)
    with pytest.raises(InputError, match=r"expected --init.base"):
        train(config, tmp_path)
