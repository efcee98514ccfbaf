"""A bundle samples as the two runs that it was made of, and holds nothing twice."""

import re
import shutil
import sys

import jax
import numpy as np
import pytest

from fd_jax import FaceDiffuser, sharding
from fd_jax.checkpoints import bundle as bundle_module
from fd_jax.checkpoints.bundle import bundle as write_bundle
from fd_jax.checkpoints.export import load_float32, open_run
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors
from fd_jax.checkpoints.weights import open_weights
from fd_jax.errors import CheckpointError, OutputError
from fd_jax.files import read_json, write_json
from fd_jax.networks import make_networks
from tests.helpers.flat_files import TDM_PARTS
from tests.helpers.networks import TINY
from tests.helpers.runs import write_run

FILES = {
    *("sdm.safetensors", "tdm.safetensors", "clip/config.json"),
    *("base/unet/config.json", "base/text_encoder/config.json", "base/vae/config.json"),
    *("base/vae/diffusion_pytorch_model.safetensors", "base/scheduler/scheduler_config.json"),
    "checksums.json",
}


def paths(folder):
    """The files of a bundle as `from_pretrained` takes them."""
    names = {"base": "base", "image_encoder": "clip"}
    names |= {"sdm": "sdm.safetensors", "tdm": "tdm.safetensors"}
    return {key: folder / name for key, name in names.items()}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def copy_run(run, folder, **changes):
    """Copies a run, with changes to parts of its model."""
    shutil.copytree(run, folder)
    model = read_json(folder / "model.json")
    write_json(
        folder / "model.json", model | {part: model[part] | new for part, new in changes.items()}
    )
    return folder


def test_a_bundle_samples_as_its_runs(bundle, pair, people):
    mesh = sharding.make_mesh(jax.devices()[:1])
    found, expected = (
        FaceDiffuser.from_pretrained(**sources, mesh=mesh) for sources in (paths(bundle), pair)
    )
    assert found.architecture == expected.architecture == TINY
    assert found.schedule == expected.schedule
    assert found.ignored_tensors == ()
    prompt = "a man <|image|> and a woman <|image|> in the snow"
    pictures = [
        pipe(prompt, people[:2], num_steps=4, alpha=0.25, beta=0.75).pixels
        for pipe in (found, expected)
    ]
    np.testing.assert_array_equal(*pictures)


def test_nothing_is_in_it_twice(bundle):
    assert files(bundle) == FILES
    parts = open_weights(bundle / "sdm.safetensors").parts
    assert set(parts) == {"unet", "text_encoder", "image_encoder", "subject_fusion"}
    assert open_weights(bundle / "tdm.safetensors").parts == ("unet",)


def test_numbers_are_half_as_long_by_default(bundle, pair, tmp_path):
    write_bundle(pair["sdm"], pair["tdm"], tmp_path / "out")
    assert files(tmp_path / "out") == FILES
    for path in tmp_path.rglob("*.safetensors"):
        long = open_tensors(bundle / path.relative_to(tmp_path / "out"))
        short = open_tensors(path)
        assert short.keys() == long.keys()
        for name, tensor in short.items():
            assert tensor.dtype == np.float16
            np.testing.assert_array_equal(tensor.read(), long[name].read().astype(np.float16))


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_what_is_not_shared_is_named(pair, tmp_path, part):
    params = load_float32(open_run(pair["tdm"]))
    assert set(params) == set(TDM_PARTS)
    [path, *_] = [path for path in params[part] if "norm" in str(path) or path == "encoder"]
    changed = jax.tree.map(lambda leaf: np.asarray(leaf) + 1e-3, params[part][path])
    params[part] = params[part] | {path: changed}
    other = write_run(tmp_path / "other", "tdm", params, TINY)
    with pytest.raises(
        CheckpointError, match=rf"other and .*sdm do not share their {part}: {part}/{path}"
    ):
        write_bundle(pair["sdm"], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_that_do_not_go_together_are_refused(pair, checkpoints, tmp_path):
    def refuses(match, sdm=pair["sdm"], tdm=pair["tdm"]):
        with pytest.raises(CheckpointError, match=match):
            write_bundle(sdm, tdm, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refuses("tdm trains a tdm, expected a run that trains a sdm", sdm=pair["tdm"])
    refuses("sdm trains a sdm, expected a run that trains a tdm", tdm=pair["sdm"])
    flat = checkpoints["tdm"]
    refuses("tdm.safetensors is no folder of a training run", tdm=flat)
    other = copy_run(pair["tdm"], tmp_path / "heads", unet={"attention_head_dim": 4})
    refuses("heads does not fit .*sdm: unet.num_heads is 4, expected 2", tdm=other)
    other = copy_run(pair["tdm"], tmp_path / "v", scheduler={"prediction_type": "v_prediction"})
    refuses("v does not fit .*sdm: scheduler.prediction_type is 'v_prediction'", tdm=other)
    # Nor do settings that no parameter shows.
    other = copy_run(pair["tdm"], tmp_path / "text", text_encoder={"num_attention_heads": 3})
    refuses("text does not fit .*sdm: text_encoder.num_heads is 3, expected 2", tdm=other)
    other = copy_run(pair["tdm"], tmp_path / "vae", vae={"scaling_factor": 1.0})
    refuses("vae does not fit .*sdm: vae.scaling_factor is 1.0, expected 0.18215", tdm=other)


def test_the_card_survives_what_else_is_replaced(pair, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    kept = {"README.md": "what these models are", "prompts.jsonl": "{}", "unseen.jsonl": ""}
    for name, text in kept.items():
        (out / name).write_text(text)
    write_bundle(pair["sdm"], pair["tdm"], out, dtype="float32")
    with pytest.raises(OutputError, match=r"out is not empty, .*--overwrite"):
        write_bundle(pair["sdm"], pair["tdm"], out)
    write_bundle(pair["sdm"], pair["tdm"], out, overwrite=True)
    assert {name: (out / name).read_text() for name in kept} == kept
    assert files(out) == FILES | kept.keys()
    assert open_tensors(out / "tdm.safetensors")["unet.conv_in.bias"].dtype == np.float16

    (out / "thesis.tex").write_text("dear to somebody")
    with pytest.raises(OutputError, match=r"holds \['thesis.tex'\]"):
        write_bundle(pair["sdm"], pair["tdm"], out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "dear to somebody"


def test_it_is_all_or_nothing(pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("what these models are")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_module, "write_flat_file", full)
    with pytest.raises(CheckpointError, match=r"out: cannot write the folder: .*No space left"):
        write_bundle(pair["sdm"], pair["tdm"], out)
    assert files(tmp_path) == {"out/README.md"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_is_noticed_and_the_file_named(bundle, tmp_path, name):
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    content = bytearray((out / name).read_bytes())
    content[-3] ^= 4  # of the last number, or of JSON
    (out / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}.* (has changed|no readable)"):
        FaceDiffuser.from_pretrained(sdm=out, tdm=out, mesh=sharding.make_mesh(jax.devices()[:1]))


def test_a_missing_file_is_named(bundle, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(bundle, out)
    (out / "base" / "unet" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"base/unet/config.json: cannot read the file"):
        open_weights(out)


def test_a_bundle_without_checksums_is_read(bundle, tmp_path):
    """As version 0.1 wrote them."""
    out = tmp_path / "out"
    shutil.copytree(bundle, out, ignore=shutil.ignore_patterns("checksums.json"))
    assert open_weights(out).load(["vae"], place_on_one(), make_networks(TINY).shapes()).params


def place_on_one():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return Placement(np.float32, lambda path, shape: device)


def test_an_unknown_dtype_is_refused(pair, tmp_path):
    with pytest.raises(CheckpointError, match="dtype is 'float8', expected one of"):
        write_bundle(pair["sdm"], pair["tdm"], tmp_path / "out", dtype="float8")


def test_the_command_line(pair, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bundle", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            bundle_module.main()
        return stopped.value.code

    out = tmp_path / "out"
    assert run(pair["sdm"], pair["tdm"], out) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"wrote {out}: ")
    assert printed.endswith(" MB\n")
    run(pair["sdm"], pair["tdm"], out, "--dtype", "bfloat16", "--overwrite")
    assert open_tensors(out / "sdm.safetensors")["unet.conv_in.bias"].dtype == "bfloat16"
    assert run(tmp_path / "nowhere", pair["tdm"], out, "--overwrite") == 1
    assert "nowhere does not exist, expected the folder of a tr" in capsys.readouterr().err
