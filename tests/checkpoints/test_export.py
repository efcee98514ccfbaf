"""What a run is exported to is read back the same, and looks as what was released."""

import json
import sys

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.architecture import Architecture, VAEConfig
from fd_jax.checkpoints import export as export_module
from fd_jax.checkpoints.config_json import config_from_json
from fd_jax.checkpoints.diffusers import load_folder
from fd_jax.checkpoints.export import export
from fd_jax.checkpoints.flat_file import flat_tensors, position_ids
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors
from fd_jax.checkpoints.torch.names import flatten, to_torch, torch_names
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.weights import open_weights
from fd_jax.data.captions import load_tokenizer
from fd_jax.errors import CheckpointError, OutputError
from fd_jax.files import read_json
from fd_jax.networks import make_networks
from fd_jax.params import flat
from fd_jax.schedule import ScheduleConfig
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS, load_flat_file, read_configs
from tests.helpers.networks import TINY
from tests.helpers.runs import write_run
from tests.helpers.untrained import random_params

PARTS = {"sdm": SDM_PARTS, "tdm": TDM_PARTS}
SCHEDULE = ScheduleConfig(prediction_type="v_prediction")


def place(dtype="float32"):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where)


@pytest.fixture(scope="module")
def abstract():
    networks = make_networks(TINY)
    return {part: getattr(networks, part).abstract for part in SDM_PARTS}


@pytest.fixture(scope="module")
def params(abstract):
    """Averaged parameters of each kind of run."""
    drawn = {part: random_params(abstract[part], 3, part) for part in SDM_PARTS}
    return {kind: {part: drawn[part] for part in parts} for kind, parts in PARTS.items()}


@pytest.fixture(scope="module")
def runs(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: write_run(folder / kind, kind, params[kind], TINY, SCHEDULE) for kind in PARTS}


def assert_same(found, expected, dtype="float32"):
    found, expected = flat(found), flat(expected)
    assert sorted(found) == sorted(expected)
    for path, array in expected.items():
        array = np.asarray(array).astype(dtype).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(found[path]), array, err_msg=path)


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("flat_format", ["bin", "safetensors"])
def test_an_export_is_read_as_it_was_trained(runs, params, abstract, tmp_path, kind, flat_format):
    out = tmp_path / "new" / "out"
    export(runs[kind], out, flat_format=flat_format)
    found, buffers = load_flat_file(out, PARTS[kind], abstract, place(), wanted=list(PARTS[kind]))
    assert_same(found, params[kind])
    assert len(buffers) == {"sdm": 2, "tdm": 1}[kind]
    for part in ("unet", "vae", "text_encoder"):
        loaded, _ = load_folder(part, out / "diffusers" / part, abstract[part], place())
        assert_same(loaded, params[kind][part])
    configs, schedule = read_configs(out / "diffusers", out / "clip" if kind == "sdm" else None)
    assert schedule == SCHEDULE
    if kind == "sdm":
        assert configs == TINY
        loaded, _ = load_folder("image_encoder", out / "clip", abstract["image_encoder"], place())
        assert_same(loaded, params[kind]["image_encoder"])
    assert load_tokenizer(out / "diffusers" / "tokenizer") is not None
    names = {"sdm": {"clip", "diffusers"}, "tdm": {"diffusers"}}[kind]
    assert {path.name for path in out.iterdir() if path.is_dir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_of_an_autoencoder_alone_there_is_nothing_but_its_folder(params, abstract, tmp_path):
    vae = {"vae": params["tdm"]["vae"]}
    out = tmp_path / "out"
    export(write_run(tmp_path / "run", "vae", vae, TINY), out)
    export(tmp_path / "run", out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["vae"]
    loaded, left = load_folder("vae", out / "vae", abstract["vae"], place())
    assert_same(loaded, vae["vae"])
    assert left == []
    path = out / "vae" / "config.json"
    assert config_from_json(VAEConfig, read_json(path), str(path)) == TINY.vae


def test_an_image_encoder_alone_is_a_folder_that_an_sdm_begins_with(params, abstract, tmp_path):
    part = {"image_encoder": params["sdm"]["image_encoder"]}
    out = tmp_path / "out"
    export(write_run(tmp_path / "run", "encoder", part, TINY), out)
    assert [path.name for path in out.iterdir()] == ["clip"]
    loaded, _ = load_folder("image_encoder", out / "clip", abstract["image_encoder"], place())
    assert_same(loaded, part["image_encoder"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_numbers_are_in_the_dtype_asked_for(runs, params, abstract, tmp_path, dtype):
    export(runs["sdm"], tmp_path / "out", dtype=dtype)
    tensors = open_tensors(tmp_path / "out" / "pytorch_model.bin")
    kinds = {tensor.dtype.name for name, tensor in tensors.items() if "position_ids" not in name}
    assert kinds == {dtype}
    found, _ = load_flat_file(
        tmp_path / "out", SDM_PARTS, abstract, place(), wanted=list(SDM_PARTS)
    )
    assert_same(found, params["sdm"], dtype)


def test_raw_parameters_and_older_steps_are_exported_too(runs, params, tmp_path):
    plain = dict(flat_tensors(params["tdm"]))
    for name, options, more in (
        ("raw", {"ema": False}, 1),
        ("old", {"step": 10}, 2),
        ("both", {"ema": False, "step": 10}, 3),
    ):
        export(runs["tdm"], tmp_path / name, **options)
        tensors = open_tensors(tmp_path / name / "pytorch_model.bin")
        trained = [
            tensors[key].read() - value
            for key, value in plain.items()
            if not np.array_equal(tensors[key].read(), value)
        ]
        assert len(plain) / 3 < len(trained) < len(plain)
        for difference in trained:
            np.testing.assert_allclose(difference, more, atol=1e-5)


@pytest.mark.parametrize("kind", PARTS)
def test_full_size_names_and_shapes_are_those_released(goldens, kind):
    """With the position ids of the encoders, which the released files hold beside them."""
    networks = make_networks(Architecture())
    found = {}
    for key, part in PARTS[kind].items():
        for path, leaf in flatten(getattr(networks, key).abstract).items():
            hollow = np.broadcast_to(np.float32(0), leaf.shape)
            name = part.prefix + torch_names(path, part.names)[0]
            found[name] = to_torch(path, hollow).shape
    expected = json.loads((goldens / "shapes.json").read_text())["sd15"][kind]
    assert found == {name: tuple(shape) for name, shape in expected.items()}
    architecture = {k: v for k, v in Architecture()._asdict().items() if k in PARTS[kind]}
    ids = {name: array.shape for name, array in position_ids(architecture)}
    buffers = {
        "text_encoder.embeddings.position_ids": (1, 77),
        "image_encoder.vision_model.embeddings.position_ids": (1, 257),
    }
    assert ids == dict(list(buffers.items())[: {"sdm": 2, "tdm": 1}[kind]])


def test_the_flat_file_holds_what_was_released(runs, params, tmp_path):
    export(runs["sdm"], tmp_path / "out")
    found = open_tensors(tmp_path / "out" / "pytorch_model.bin")
    parameters = dict(flat_tensors(params["sdm"]))
    buffers = dict(position_ids(TINY._asdict()))
    assert found.keys() == parameters.keys() | buffers.keys()
    for name, expected in (parameters | buffers).items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name].read(), expected, err_msg=name)


def test_only_an_earlier_export_is_replaced(runs, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(runs["tdm"], out, flat_format="safetensors")
    with pytest.raises(OutputError, match=r"out is not empty.*--overwrite"):
        export(runs["tdm"], out)
    export(runs["tdm"], out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"pytorch_model.bin", "diffusers"}
    (out / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(OutputError, match=r"holds \['thesis.tex'\]"):
        export(runs["tdm"], out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "dear to somebody"


def test_it_is_all_or_nothing(runs, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "write_stable_diffusion", full)
    with pytest.raises(CheckpointError, match="No space left"):
        export(runs["tdm"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_a_dtype_are_named(params, tmp_path):
    large = jax.tree.map(np.copy, params["tdm"])
    large["vae"]["encoder"]["conv_in"]["bias"][0] = 1e5
    run = write_run(tmp_path / "run", "tdm", large, TINY)
    with pytest.raises(CheckpointError, match=r"vae/encoder/conv_in/bias .* not finite in float16"):
        export(run, tmp_path / "out", dtype="float16")
    export(run, tmp_path / "out", dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "float64"}, "dtype is 'float64'"), ({"flat_format": "zip"}, "format is 'zip'")],
)
def test_unknown_options_are_refused(runs, tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        export(runs["tdm"], tmp_path / "out", **options)


def test_the_command_line(runs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["export", str(runs["tdm"]), str(out), "--step", "10"])
    with pytest.raises(SystemExit, match=r"^0$"):
        export_module.main()
    assert "wrote" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "no"), str(tmp_path / "out2")])
    with pytest.raises(SystemExit, match=r"^1$"):
        export_module.main()
    assert f"error: {tmp_path}/no does not exist, expected" in capsys.readouterr().err


def test_the_command_line_writes_a_single_file(runs, tmp_path, monkeypatch):
    command = ["export", str(runs["sdm"]), str(tmp_path / "out"), "--single-file"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        export_module.main()
    assert not end.value.code
    opened = open_weights(tmp_path / "out" / "stable_diffusion.safetensors")
    assert set(opened.parts) == {"unet", "vae", "text_encoder"}


def test_torch_files_hold_all_shapes_and_dtypes(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "scalar": np.array(3, np.float32),
        "transposed": rng.standard_normal((3, 5, 2), np.float32).transpose(2, 0, 1),
        "half": rng.standard_normal((1, 4)).astype(np.float16),
        "brain": rng.standard_normal((7,)).astype(jax.numpy.bfloat16),
        "ids": np.arange(2**33, 2**33 + 6).reshape(2, 3),
        "none": np.empty((0, 3), np.float32),
        "näme": np.ones(1, np.float32),
    }
    write_torch(tmp_path / "file.bin", tensors.items())
    found = open_tensors(tmp_path / "file.bin")
    assert list(found) == list(tensors)
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name].read(), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def test_torch_files_of_other_dtypes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="'wide' is float64, expected one of float32"):
        write_torch(tmp_path / "file.bin", [("wide", np.ones(2))])
    with pytest.raises(CheckpointError, match="cannot write the file"):
        write_torch(tmp_path / "nowhere" / "file.bin", [])
    assert list(tmp_path.iterdir()) == []
