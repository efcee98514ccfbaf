import json
import shutil

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.architecture import ConfigError
from fd_jax.checkpoints.config_json import config_from_json
from fd_jax.checkpoints.diffusers import KINDS, load_folder, write_folder
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.checkpoints.torch.names import flatten
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, write_json
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from tests.helpers.flat_files import read_configs

FORMATS = ("safetensors", "safetensors shards", "bin", "bin shards")


@pytest.fixture(scope="module")
def configs(checkpoints):
    return read_configs(checkpoints["base"], checkpoints["image_encoder"])[0]


@pytest.fixture(scope="module")
def networks(configs):
    return make_networks(configs)


@pytest.fixture(scope="module")
def folders(checkpoints):
    """The folder of each model."""
    base = {kind: checkpoints["base"] / kind for kind in KINDS}
    return base | {"image_encoder": checkpoints["image_encoder"]}


def place(dtype="float32"):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where)


def load(kind, folder, networks, dtype="float32"):
    return load_folder(kind, folder, getattr(networks, kind).abstract, place(dtype))


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), path


def read_all(folder):
    (path,) = folder.glob("*.safetensors")
    return {name: tensor.read() for name, tensor in open_tensors(path).items()}


# Weights.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read(kind, dtype, folders, networks, configs, tmp_path):
    params, left = load(kind, folders[kind], networks, dtype)
    assert left == []

    config = getattr(configs, kind)
    write_folder(kind, tmp_path / "new" / kind, params, config)

    assert_same(load(kind, tmp_path / "new" / kind, networks, dtype)[0], params)
    assert (
        config_from_json(type(config), read_json(tmp_path / "new" / kind / "config.json")) == config
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_read(kind, format, folders, networks, tmp_path, write_torch_zip):
    tensors = read_all(folders[kind])
    suffix, *shards = format.split()
    stem = KINDS[kind][0]
    if stem == "model" and suffix == "bin":
        stem = "pytorch_model"
    write = write_safetensors if suffix == "safetensors" else write_torch_zip
    if shards:
        weight_map = {}
        for i, names in enumerate(np.array_split(list(tensors), 3), 1):
            shard = f"{stem}-0000{i}-of-00003.{suffix}"
            write(tmp_path / shard, {str(name): tensors[name] for name in names})
            weight_map |= dict.fromkeys(map(str, names), shard)
        write_json(tmp_path / f"{stem}.{suffix}.index.json", {"weight_map": weight_map})
    else:
        write(tmp_path / f"{stem}.{suffix}", tensors)

    params, left = load(kind, tmp_path, networks)

    assert left == []
    assert_same(params, load(kind, folders[kind], networks)[0])


def test_text_encoder_without_its_outer_module(folders, networks, tmp_path):
    tensors = read_all(folders["text_encoder"])
    bare = {name.removeprefix("text_model."): data for name, data in tensors.items()}
    assert not tensors.keys() & bare.keys()
    bare["embeddings.position_ids"] = np.arange(77)[None]
    write_safetensors(tmp_path / "model.safetensors", bare)

    params, left = load("text_encoder", tmp_path, networks)

    assert left == ["embeddings.position_ids"]
    assert_same(params, load("text_encoder", folders["text_encoder"], networks)[0])


def test_of_a_whole_clip_the_vision_tower_is_read(folders, networks, tmp_path):
    rest = {
        "logit_scale": np.array(4.6, "f4"),
        "text_projection.weight": np.zeros((12, 12), "f4"),
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "vision_model.embeddings.position_ids": np.arange(5)[None],
        **read_all(folders["text_encoder"]),
    }
    whole = read_all(folders["image_encoder"]) | rest
    write_safetensors(tmp_path / "model.safetensors", whole)

    params, left = load("image_encoder", tmp_path, networks)

    assert left == sorted(rest)
    assert_same(params, load("image_encoder", folders["image_encoder"], networks)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_is_refused(kind, folders, networks):
    other = {"unet": "vae", "vae": "unet", "text_encoder": "image_encoder"}
    folder = folders[other.get(kind, "text_encoder")]
    with pytest.raises(CheckpointError) as error:
        load(kind, folder, networks)
    assert str(folder) in str(error.value)
    assert " lacks the tensors " in str(error.value)


def test_errors_name_the_file(folders, networks, tmp_path):
    tensors = read_all(folders["unet"])
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    for change, problem in (
        ({"ema": np.zeros(2, "f4")}, " has unknown tensors ema"),
        ({"conv_in.bias": np.zeros(9, "f4")}, " has tensors of another shape: conv_in.bias is (9,"),
        ({"conv_in.bias": np.zeros(8, "i4")}, " has tensors that are no floats: conv_in.bias is i"),
        ({"conv_in.bias": np.full(8, np.nan, "f4")}, ": conv_in.bias has 8 values of 8 that are"),
    ):
        write_safetensors(file, tensors | change)
        with pytest.raises(CheckpointError) as error:
            load("unet", tmp_path, networks)
        assert str(error.value).startswith(f"{file}{problem}")
    with pytest.raises(CheckpointError, match=r"holds .*expected one of .*pytorch_model\.bin"):
        load("text_encoder", tmp_path, networks)


# Architecture.


def test_configs_are_read(checkpoints, configs, networks):
    schedule = read_configs(str(checkpoints["base"]), str(checkpoints["image_encoder"]))[1]
    assert schedule == ScheduleConfig()
    assert configs.unet.block_out_channels == (8, 16)
    assert configs.image_encoder.projection_dim == 12


def test_configs_of_a_whole_clip(checkpoints, configs, tmp_path):
    towers = {
        "vision_config": read_json(checkpoints["image_encoder"] / "config.json"),
        "text_config": read_json(checkpoints["base"] / "text_encoder" / "config.json"),
    }
    write_json(tmp_path / "config.json", {"model_type": "clip", **towers})

    assert read_configs(checkpoints["base"], tmp_path)[0] == configs


@pytest.fixture
def copied(checkpoints, tmp_path):
    """Configs that a test may spoil."""
    names = [f"base/{name}/config.json" for name in ("unet", "vae", "text_encoder")]
    for name in (*names, "base/scheduler/scheduler_config.json", "clip/config.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(checkpoints["base"].parent / name, tmp_path / name)
    return tmp_path


FILES = (
    *(f"base/{name}/config.json" for name in ("unet", "vae", "text_encoder")),
    "base/scheduler/scheduler_config.json",
    "clip/config.json",
)


@pytest.mark.parametrize("name", FILES)
def test_damaged_json(name, copied):
    path = copied / name
    for content, message in (
        (b"", "is no readable JSON file"),
        (b"{", "is no readable JSON file"),
        (b'{"a": \xff}', "is no readable JSON file"),
        (b'{"a": "\xff"}', "is no readable JSON file"),
        (b'{"a": ' * 100_000, "is no readable JSON file"),
        (b'{"sample_size": ' + b"9" * 10_000 + b"}", "is no readable JSON file"),
        (b"[]", "holds a list, expected a JSON object"),
        (b"null", "holds a NoneType, expected a JSON object"),
        (b"version https://git-lfs", "is no readable JSON file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as error:
            read_configs(copied / "base", copied / "clip")
        assert str(error.value).startswith(f"{path} {message}")
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path.parent}.* (does not exist|holds nothing)"):
        read_configs(copied / "base", copied / "clip")
    path.mkdir()
    with pytest.raises(CheckpointError, match=r"readable JSON file: .*directory|holds config.json"):
        read_configs(copied / "base", copied / "clip")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (FILES[0], "use_linear_projection", True),
        (FILES[1], "latent_channels", 16),
        (FILES[2], "hidden_act", "gelu"),
        (FILES[3], "prediction_type", "sample"),
        (FILES[4], "num_channels", 4),
    ],
)
def test_unsupported_settings_are_named(name, key, value, copied):
    path = copied / name
    write_json(path, read_json(path) | {key: value})
    with pytest.raises((ConfigError, CheckpointError)) as error:
        read_configs(copied / "base", copied / "clip")
    assert str(error.value).startswith(f"{path}: {key} is {value!r}, ")


def problem_of(folder):
    try:
        read_configs(folder / "base", folder / "clip")
    except (ConfigError, CheckpointError) as error:
        return str(error)


@pytest.mark.parametrize("name", FILES)
def test_odd_values_raise_nothing_else(name, copied):
    path = copied / name
    content = read_json(path)
    odd = [None, True, "x", "", 0, -1, 10**400, 0.5, -0.0, float("nan"), float("inf"), [], [[8]]]
    for key in content:
        for value in [*odd, [None, 1], ["x"], {}, {"a": 1}, [8, 12], [8, True], {"text_config": 1}]:
            path.write_text(json.dumps(content | {key: value}))
            # Where two files do not fit together no file is named, but both settings are.
            if problem := problem_of(copied):
                assert str(path) in problem or "of the text encoder" in problem


def test_folders_that_are_none(checkpoints, copied):
    for base, clip, named in (
        (copied / "nowhere", copied / "clip", "nowhere does not exist, expected the folder"),
        (copied / "base", copied / "nowhere", "nowhere does not exist, expected the folder"),
        (checkpoints["sdm"], copied / "clip", r"give no config of \['unet'"),
        (copied / "clip", copied / "clip", r"give no config of \['unet'"),
    ):
        with pytest.raises(CheckpointError, match=named):
            read_configs(base, clip)


def test_networks_that_do_not_fit(copied):
    path = copied / "clip" / "config.json"
    write_json(path, read_json(path) | {"projection_dim": 16})
    with pytest.raises(ConfigError, match="projection_dim of the image encoder is 16, expected 12"):
        read_configs(copied / "base", copied / "clip")


def test_json_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "config.json"):
        with pytest.raises(CheckpointError, match="cannot write the file"):
            write_json(path, {})


def test_json_is_written_with_its_folder(tmp_path):
    content = {"name": "Zoë", "sizes": [1, 2], "none": None}

    write_json(tmp_path / "a" / "b" / "c.json", content)

    assert read_json(str(tmp_path / "a" / "b" / "c.json")) == content
