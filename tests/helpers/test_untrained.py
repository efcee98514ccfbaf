import shutil
import sys

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.checkpoints.diffusers import KINDS, load_folder
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors
from fd_jax.checkpoints.torch.names import flatten
from fd_jax.data.captions import load_tokenizer
from fd_jax.files import read_json
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from tests.helpers import untrained
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS, load_flat_file, read_configs
from tests.helpers.untrained import CONFIGS, random_params, write_untrained

# The first biases of `conv_in` in each UNet. Numbers measured with the demo hold while these do.
UNET = (-0.023314366, -0.01776181, -0.06798508)
SDM = (0.028909704, -0.038527887, -0.0078950832)
TDM = (-0.020578837, 0.043558441, -0.032061033)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_untrained(folder)
    return folder


@pytest.fixture(scope="module")
def networks():
    return make_networks(CONFIGS)


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_all(path):
    return {name: tensor.read() for name, tensor in open_tensors(path).items()}


def test_the_same_on_every_machine(demo, tmp_path):
    write_untrained(str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(demo)

    base = demo / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    for path, name, first in (
        (base, "conv_in.bias", UNET),
        (demo / "sdm.safetensors", "unet.conv_in.bias", SDM),
        (demo / "tdm.safetensors", "unet.conv_in.bias", TDM),
    ):
        np.testing.assert_allclose(open_tensors(path)[name].read()[:3], first, rtol=1e-6)


def test_files_are_replaced_by_those_of_another_seed(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "out")
    before = contents(demo)

    write_untrained(tmp_path / "out", seed=1)

    after = contents(tmp_path / "out")
    assert before.keys() == after.keys()
    for name in before:
        assert (before[name] == after[name]) != name.endswith(".safetensors"), name
    first, second = (read_all(folder / "sdm.safetensors") for folder in (demo, tmp_path / "out"))
    assert first.keys() == second.keys()
    for name in first:
        assert not np.array_equal(first[name], second[name]), name


def test_folders_and_files_load(demo, networks):
    configs, schedule = read_configs(demo / "base", demo / "clip")
    assert configs == CONFIGS
    assert schedule == ScheduleConfig()
    assert load_tokenizer(demo / "base" / "tokenizer")
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    placement = Placement("float32", lambda path, shape: where)
    abstract = {name: getattr(networks, name).abstract for name in SDM_PARTS}
    for kind in KINDS:
        folder = demo / "clip" if kind == "image_encoder" else demo / "base" / kind
        params, left = load_folder(kind, folder, abstract[kind], placement)
        assert left == []
        expected = flatten(random_params(abstract[kind], 0, kind))
        for path, array in flatten(params).items():
            np.testing.assert_array_equal(array, expected[path])
    for name, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS)):
        path = demo / f"{name}.safetensors"
        loaded, left = load_flat_file(path, parts, abstract, placement, wanted=list(parts))
        assert loaded.keys() == parts.keys()
        assert left == []


def test_the_two_models_differ_in_their_unets_alone(demo):
    sdm, tdm = (read_all(demo / f"{name}.safetensors") for name in ("sdm", "tdm"))
    for key in tdm:
        assert np.array_equal(sdm[key], tdm[key]) != key.startswith("unet."), key
    assert {key.split(".")[0] for key in sdm.keys() - tdm.keys()} == {
        "image_encoder",
        "postfuse_module",
    }


def test_the_pipeline_of_diffusers_is_described(demo):
    index = read_json(demo / "base" / "model_index.json")
    for name, (library, cls) in ((k, v) for k, v in index.items() if isinstance(v, list)):
        assert (demo / "base" / name).is_dir() == (library is not None) == (cls is not None)
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_activations_stay_about_one(networks):
    """Kernels keep the variance of their input, norms hardly change it."""
    for path, array in flatten(random_params(networks.unet.abstract, 0, "unet")).items():
        assert array.dtype == np.float32
        if path[-1] == "kernel" and array.size > 10_000:
            np.testing.assert_allclose(array.var() * np.prod(array.shape[:-1]), 1, rtol=0.1)
        if path[-1] == "scale":
            assert 0.4 < array.min() < array.max() < 1.6


def test_equal_shapes_have_different_weights(networks):
    leaves = flatten(random_params(networks.unet.abstract, 0, "unet"))
    assert len({array.tobytes() for array in leaves.values()}) == len(leaves)


# The command.


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["untrained", *map(str, arguments)])
    untrained.main()


def test_command(demo, tmp_path, monkeypatch, capsys):
    run(monkeypatch, tmp_path / "out", "--seed", "0")

    assert capsys.readouterr().out.startswith(f"wrote untrained checkpoints to {tmp_path}")
    assert contents(tmp_path / "out") == contents(demo)


@pytest.mark.parametrize(
    "occupied", ["", "base", "base/tokenizer", "base/unet/config.json", "sdm.safetensors"]
)
def test_command_says_what_it_cannot_write(occupied, tmp_path, monkeypatch):
    """There is a file where a folder is to be, or the other way round."""
    path = tmp_path / "out" / occupied
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if path.suffix else path.touch()
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, tmp_path / "out")
    assert str(error.value).startswith("error: ")
    assert str(path) in str(error.value)
