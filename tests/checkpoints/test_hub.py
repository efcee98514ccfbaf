"""Models by their name on the hub, from a server on this machine that answers as it does."""

import shutil

import jax
import numpy as np
import pytest
from huggingface_hub import constants

from fd_jax import FaceDiffuser, sharding
from fd_jax.checkpoints.hub import parse_hub_name
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.single_file import write_single_file
from fd_jax.checkpoints.weights import open_weights
from fd_jax.errors import CheckpointError
from fd_jax.networks import make_networks
from fd_jax.params import flat
from tests.helpers import hub_server
from tests.helpers.networks import TINY
from tests.helpers.untrained import random_params

SCENE = ("unet", "vae", "text_encoder")


@pytest.fixture(scope="module")
def abstract():
    return make_networks(TINY).shapes()


@pytest.fixture(scope="module")
def repositories(checkpoints, abstract, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repositories")
    shutil.copytree(checkpoints["base"], folder / "base")
    (folder / "base" / "big.ckpt").write_bytes(b"not needed")
    (folder / "flat").mkdir()
    shutil.copy(checkpoints["sdm"], folder / "flat" / "model.safetensors")
    (folder / "one").mkdir()
    shutil.copy(checkpoints["tdm"], folder / "one" / "tdm.safetensors")
    unet = {"unet": random_params(abstract["unet"], 9, "unet")}
    (folder / "many").mkdir()
    write_single_file(folder / "many" / "a.safetensors", unet)
    write_single_file(folder / "many" / "b.safetensors", unet)
    names = {name: folder / name for name in ("base", "flat", "one", "many")}
    return {f"user/{name}": path for name, path in names.items()} | {
        "user/clip": checkpoints["image_encoder"]
    }


@pytest.fixture
def hub(repositories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with hub_server.serve(dict(repositories)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server


def place():
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement("float32", lambda path, shape: where)


def assert_same(found, expected):
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(leaf))


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_hub_name("user/repo-1.5") == ("user/repo-1.5", None)
    assert parse_hub_name("user/repo:a/b.safetensors") == ("user/repo", "a/b.safetensors")
    for other in ("repo", "a/b/c", "/a/b", "./a", "../a", "a/b:../c", "a/", "~/x"):
        assert parse_hub_name(other) is None
    (tmp_path / "user" / "repo-1.5").mkdir(parents=True)
    assert parse_hub_name("user/repo-1.5") is None


def test_only_what_is_needed_is_downloaded(hub, checkpoints, abstract):
    opened = open_weights("user/base")
    assert str(opened.path) == "user/base"
    assert opened.architecture["vae"] == TINY.vae
    assert not any(name.endswith((".safetensors", ".ckpt", ".bin")) for name in hub.downloads)
    loaded = opened.load(["vae"], place(), abstract)
    expected = open_weights(checkpoints["base"]).load(["vae"], place(), abstract)
    assert_same(loaded.params, expected.params)
    weights = [name for name in hub.downloads if name.endswith((".safetensors", ".ckpt", ".bin"))]
    assert weights == ["user/base/vae/diffusion_pytorch_model.safetensors"]
    count = len(hub.downloads)
    open_weights("user/base").load(["vae"], place(), abstract)
    assert len(hub.downloads) == count


def test_a_pipeline_of_names(hub, checkpoints, pipe):
    names = {"base": "base", "image_encoder": "clip", "sdm": "flat", "tdm": "one"}
    mesh = sharding.make_mesh(jax.devices()[:1])
    paths = {option: f"user/{name}" for option, name in names.items()}
    found = FaceDiffuser.from_pretrained(**paths, mesh=mesh)
    assert_same(found.compiled.params._asdict(), pipe.compiled.params._asdict())
    assert "user/base/unet/diffusion_pytorch_model.safetensors" not in hub.downloads
    assert "user/base/big.ckpt" not in hub.downloads


def test_a_file_of_a_repository(hub):
    assert open_weights("user/many:b.safetensors").parts == ("unet",)
    assert hub.downloads == ["user/many/b.safetensors"]
    with pytest.raises(CheckpointError, match=r"no c.ckpt, expected one of its files: a.safeten"):
        open_weights("user/many:c.ckpt")
    with pytest.raises(CheckpointError, match=r"a.safetensors, b.safetensors, expected .*:FILE"):
        open_weights("user/many")


def test_a_path_wins(hub, checkpoints, tmp_path):
    shutil.copytree(checkpoints["base"], tmp_path / "user" / "base")
    assert set(open_weights("user/base").parts) == set(SCENE)
    assert hub.downloads == []


def test_without_network_the_cache_counts(hub, monkeypatch, abstract):
    open_weights("user/base").load(["vae"], place(), abstract)
    for offline in (False, True):
        if offline:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        opened = open_weights("user/base")
        assert opened.load(["vae"], place(), abstract).params.keys() == {"vae"}
        with pytest.raises(CheckpointError, match=r"user/base in the cache .* holds unet/config"):
            opened.load(["unet"], place(), abstract)
        with pytest.raises(CheckpointError, match=r"one is no file .*, and the hub cannot be reac"):
            open_weights("user/one")


def test_refusals_are_named(hub, monkeypatch):
    with pytest.raises(CheckpointError, match=r"user/no is neither a file or folder here nor a"):
        open_weights("user/no")
    with pytest.raises(CheckpointError, match=r"a--b/no is neither a file or folder here nor a"):
        open_weights("a--b/no")
    hub.gated.add("user/base")
    with pytest.raises(CheckpointError, match=r"user/base is gated: accept its terms"):
        open_weights("user/base")
    hub.token = "hf_secret"
    with pytest.raises(CheckpointError, match=r"if it is private, log in"):
        open_weights("user/one")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert open_weights("user/one").parts


def test_a_server_that_fails_for_a_while(hub, abstract):
    opened = open_weights("user/base")
    hub.failures = 2
    assert opened.load(["vae"], place(), abstract).params.keys() == {"vae"}
    assert hub.failures == 0


def test_a_mistyped_path_below_a_folder_that_is_here_does_not_ask_the_hub(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert parse_hub_name("runs/tdn") is None
    with pytest.raises(CheckpointError, match=r"^runs/tdn does not exist, expected"):
        open_weights("runs/tdn")
