import re

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.checkpoints.config_json import config_from_json
from fd_jax.checkpoints.diffusers import KINDS
from fd_jax.checkpoints.flat_file import write_flat_file
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.checkpoints.torch.names import flatten
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, write_json
from fd_jax.networks import make_networks
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS, load_flat_file, read_configs

PARTS = {"sdm": SDM_PARTS, "tdm": TDM_PARTS}
BUFFERS = {
    "text_encoder.embeddings.position_ids": np.arange(77)[None],
    "image_encoder.vision_model.embeddings.position_ids": np.arange(5)[None],
}


@pytest.fixture(scope="module")
def abstract(checkpoints):
    networks = make_networks(read_configs(checkpoints["base"], checkpoints["image_encoder"])[0])
    return {key: getattr(networks, key).abstract for key in SDM_PARTS}


def place(dtype="float32", **options):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where, **options)


def load(path, name, abstract, wanted=None, **options):
    wanted = list(PARTS[name] if wanted is None else wanted)
    return load_flat_file(path, PARTS[name], abstract, place(**options), wanted=wanted)


@pytest.fixture(scope="module")
def params(checkpoints, abstract):
    """All parts of both files."""
    return {name: load(checkpoints[name], name, abstract)[0] for name in PARTS}


@pytest.fixture(scope="module")
def tensors(checkpoints):
    """All tensors of both files. Tests copy what they change."""
    return {
        name: {key: tensor.read() for key, tensor in open_tensors(checkpoints[name]).items()}
        for name in PARTS
    }


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert np.asarray(found[path]).tobytes() == np.asarray(array).tobytes(), path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PARTS)
def test_what_is_written_is_read(name, dtype, checkpoints, abstract, tmp_path):
    loaded, left = load(checkpoints[name], name, abstract, dtype=dtype)
    assert loaded.keys() == PARTS[name].keys()
    assert left == []

    write_flat_file(tmp_path / "x.safetensors", loaded)

    assert_same(load(tmp_path / "x.safetensors", name, abstract, dtype=dtype)[0], loaded)
    dtypes = {tensor.dtype.name for tensor in open_tensors(tmp_path / "x.safetensors").values()}
    assert dtypes == {"float32", dtype}


def write_shards(folder, tensors):
    names = list(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        write_safetensors(folder / shard, {key: tensors[key] for key in held})
    weight_map = {key: shard for shard, held in shards.items() for key in held}
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("format", ["bin", "folder of bin", "folder of safetensors", "shards"])
def test_every_format_is_read(name, format, tensors, params, abstract, tmp_path, write_torch_zip):
    """The released `pytorch_model.bin` holds buffers too."""
    buffers = {key: BUFFERS[key] for key in BUFFERS if name == "sdm" or key.startswith("text")}
    stored = tensors[name] | buffers
    path = tmp_path
    if "bin" in format:
        write_torch_zip(tmp_path / "pytorch_model.bin", stored)
        path = tmp_path if "folder" in format else tmp_path / "pytorch_model.bin"
    elif format == "shards":
        write_shards(tmp_path, stored)
    else:
        write_safetensors(tmp_path / "model.safetensors", stored)

    loaded, left = load(path, name, abstract)

    assert left == sorted(buffers)
    assert_same(loaded, params[name])


def test_newer_names_of_the_vae(tensors, params, abstract, tmp_path):
    renamed = tensors["tdm"]
    for old, new in (
        ("query", "to_q"),
        ("key", "to_k"),
        ("value", "to_v"),
        ("proj_attn", "to_out.0"),
    ):
        renamed = {key.replace(f".{old}.", f".{new}."): data for key, data in renamed.items()}
    assert len(renamed.keys() - tensors["tdm"].keys()) == 16
    write_safetensors(tmp_path / "x", renamed)

    assert_same(load(tmp_path / "x", "tdm", abstract)[0], params["tdm"])


# Parts that are not wanted.


def test_wanted_parts_alone_are_read(checkpoints, params, abstract):
    for name in PARTS:
        for key in PARTS[name]:
            counts = []
            loaded, left = load(checkpoints[name], name, abstract, [key], advance=counts.append)
            assert left == []
            assert_same(loaded, {key: params[name][key]})
            assert sum(counts) == len(flatten(abstract[key]))


@pytest.mark.parametrize("absent", TDM_PARTS)
def test_unwanted_parts_may_be_absent(absent, tensors, params, abstract, tmp_path):
    rest = {k: data for k, data in tensors["tdm"].items() if not k.startswith(f"{absent}.")}
    assert len(rest) < len(tensors["tdm"])
    write_safetensors(tmp_path / "x", rest)
    wanted = [key for key in TDM_PARTS if key != absent]

    loaded, _ = load(tmp_path / "x", "tdm", abstract, wanted)

    assert_same(loaded, {key: params["tdm"][key] for key in wanted})
    with pytest.raises(CheckpointError, match=rf"x lacks the tensors {absent}\."):
        load(tmp_path / "x", "tdm", abstract)


def test_unwanted_parts_are_checked(tensors, abstract, tmp_path):
    changes = (
        ({"vae.encoder.conv_in.bias": np.zeros(5, "f4")}, r"vae\.encoder\.conv_in\.bias is \(5,\)"),
        ({"vae.encoder.conv_in.bias": np.zeros(4, "i4")}, r"vae\.encoder\.conv_in\.bias is int32"),
        ({"vae.loss": np.zeros(4, "f4")}, r"has unknown tensors vae\.loss"),
        ({"vae.encoder.conv_in.bias": None}, r"lacks the tensors vae\.encoder\.conv_in\.bias$"),
    )
    for change, message in changes:
        changed = {k: v for k, v in (tensors["tdm"] | change).items() if v is not None}
        write_safetensors(tmp_path / "x", changed)
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / "x", "tdm", abstract, ["unet"])


def test_values_of_unwanted_parts_do_not_matter(tensors, params, abstract, tmp_path):
    wrong = np.full_like(tensors["tdm"]["vae.encoder.conv_in.bias"], np.nan)
    write_safetensors(tmp_path / "x", tensors["tdm"] | {"vae.encoder.conv_in.bias": wrong})

    loaded, _ = load(tmp_path / "x", "tdm", abstract, ["unet"])

    assert_same(loaded, {"unet": params["tdm"]["unet"]})
    with pytest.raises(CheckpointError, match=r"x: vae\.encoder\.conv_in\.bias has 4 values of 4"):
        load(tmp_path / "x", "tdm", abstract)


# Other files.


def test_the_other_model_is_refused(checkpoints, abstract):
    with pytest.raises(CheckpointError, match=r"tdm.*lacks the tensors image_encoder.* more$"):
        load(checkpoints["tdm"], "sdm", abstract)
    with pytest.raises(CheckpointError, match=r"sdm.*has unknown tensors image_encoder.* more$"):
        load(checkpoints["sdm"], "tdm", abstract)


def test_buffers_of_a_part_that_is_not_there_are_unknown(tensors, abstract, tmp_path):
    write_safetensors(tmp_path / "x", tensors["tdm"] | BUFFERS)
    with pytest.raises(CheckpointError, match=r"unknown tensors image_encoder.*position_ids$"):
        load(tmp_path / "x", "tdm", abstract)


def test_missing_files(checkpoints, abstract, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere: cannot read the file: .*No such file"):
        load(tmp_path / "nowhere", "sdm", abstract)
    with pytest.raises(CheckpointError, match=r"holds \[\], expected one of .*pytorch_model\.bin"):
        load(tmp_path, "sdm", abstract)


@pytest.mark.slow
@pytest.mark.golden
def test_names_and_shapes_are_the_real_ones(goldens):
    """Those of the released files, and of the folders that they were trained from."""
    all_shapes, all_configs = (read_json(goldens / f"{n}.json") for n in ("shapes", "configs"))
    for size, shapes in all_shapes.items():
        config = all_configs[size]
        networks = make_networks(
            Architecture(
                config_from_json(UNetConfig, config["unet"]),
                config_from_json(VAEConfig, config["vae"]),
                config_from_json(CLIPTextConfig, config["text"]),
                config_from_json(CLIPVisionConfig, config["vision"]),
            )
        )
        files = PARTS | {kind: {kind: part} for kind, (_, part) in KINDS.items()}
        for file, parts in files.items():
            found = {}
            for model, part in parts.items():
                for path, leaf in flatten(getattr(networks, model).abstract).items():
                    name = part.prefix + names.torch_names(path, part.names)[0]
                    unread = np.broadcast_to(np.float32(0), leaf.shape)
                    found[name] = list(names.to_torch(path, unread).shape)
            expected = shapes["clip" if file == "image_encoder" else file]
            skipped = "|".join(part.names.buffers for part in parts.values())
            skipped += r"|.*\.position_ids"  # of some files
            assert found == {
                name: shape for name, shape in expected.items() if not re.fullmatch(skipped, name)
            }
        if size == "sd15":
            assert [len(shapes[file]) for file in ("sdm", "tdm", "unet")] == [1536, 1130, 686]
