import re

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fd_jax import sharding
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import LazyTensor
from fd_jax.checkpoints.torch.names import flatten, torch_names, unflatten
from fd_jax.errors import CheckpointError
from fd_jax.networks import make_networks
from tests.helpers.flat_files import SDM_PARTS, read_configs
from tests.helpers.untrained import random_params

KEYS = tuple(SDM_PARTS)
WHERE = "sdm.bin"


@pytest.fixture(scope="module")
def abstract(checkpoints):
    configs, _ = read_configs(checkpoints["base"], checkpoints["image_encoder"])
    networks = make_networks(configs)
    return {key: getattr(networks, key).abstract for key in KEYS}


@pytest.fixture(scope="module")
def params(abstract):
    return {key: random_params(abstract[key], 0, key) for key in KEYS}


@pytest.fixture(scope="module")
def exported(params):
    """The tensors of each model, as PyTorch has them. Tests copy what they change."""
    return {key: dict(names.export(params[key], SDM_PARTS[key])) for key in KEYS}


def lazy(tensors):
    return {
        name: LazyTensor(name, data.shape, data.dtype, lambda data=data: data)
        for name, data in tensors.items()
    }


def place(dtype="float32", **options):
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    return Placement(dtype, lambda path, shape: where, **options)


def match(key, abstract, tensors):
    return names.match(lazy(tensors), abstract, {key: SDM_PARTS[key]}, WHERE)


def read(key, abstract, tensors, placement=None):
    found, _ = match(key, abstract, tensors)
    return names.load(found[key], abstract[key], placement or place(), WHERE)


def bits(array):
    array = np.asarray(array)
    return array.dtype, array.shape, array.tobytes()


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert bits(found[path]) == bits(array), path


# There and back.


@pytest.mark.parametrize("key", KEYS)
def test_export_is_undone_by_load(key, abstract, params, exported):
    assert_same(read(key, abstract, exported[key]), params[key])


@pytest.mark.parametrize("key", KEYS)
def test_export_is_undone_by_load_in_bfloat16(key, abstract, exported):
    small = read(key, abstract, exported[key], place("bfloat16"))
    tensors = dict(names.export(small, SDM_PARTS[key]))

    assert {data.dtype.name for data in tensors.values()} == {"bfloat16", "float32"}
    assert_same(read(key, abstract, tensors, place("bfloat16")), small)


def test_names_are_unique(abstract):
    names = [
        part.prefix + name
        for key, part in SDM_PARTS.items()
        for path in flatten(abstract[key])
        for name in torch_names(path, part.names)
    ]
    assert len(names) == len(set(names))


def test_flatten_has_an_inverse(params):
    for tree in params.values():
        assert jax.tree.structure(unflatten(flatten(tree))) == jax.tree.structure(tree)


def test_layouts(abstract, exported):
    """PyTorch's matrices are (out, in), its convolutions (out, in, height, width)."""
    unet = flatten(read("unet", abstract, exported["unet"]))

    kernel, weight = unet["conv_in", "kernel"], exported["unet"]["unet.conv_in.weight"]
    for o, i, y, x in ((0, 0, 0, 0), (5, 3, 0, 2), (7, 1, 2, 1)):
        assert kernel[y, x, i, o] == weight[o, i, y, x]
    kernel = unet["time_embedding", "linear_1", "kernel"]
    weight = exported["unet"]["unet.time_embedding.linear_1.weight"]
    assert weight.shape == (32, 8)
    np.testing.assert_array_equal(kernel, weight.T)


# Other ways to store the same.


def rename_attention(tensors):
    renamed = {}
    for name, data in tensors.items():
        for ours, theirs in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            name = name.replace(f".{ours}.", f".{theirs}.")
        renamed[name.replace(".proj_attn.", ".to_out.0.")] = data
    return renamed


def as_convolutions(tensors):
    def convert(name, data):
        linear = ".attentions." in name and data.ndim == 2
        return data[:, :, None, None] if linear else data

    return {name: convert(name, data) for name, data in tensors.items()}


def as_matrices(tensors):
    return {
        name: data[:, :, 0, 0] if data.shape[2:] == (1, 1) else data
        for name, data in tensors.items()
    }


@pytest.mark.parametrize(
    "store",
    [rename_attention, as_convolutions, lambda tensors: rename_attention(as_convolutions(tensors))],
    ids=["names", "convolutions", "both"],
)
def test_attention_of_the_vae(store, abstract, params, exported):
    stored = store(exported["vae"])

    def describe(tensors):
        return {(name, data.shape) for name, data in tensors.items()}

    changed = describe(stored) - describe(exported["vae"])
    assert len(changed) in (8, 16), "weights, and maybe biases, of 2 x 4 projections"
    assert_same(read("vae", abstract, stored), params["vae"])


@pytest.mark.parametrize("key", ["unet", "vae"])
def test_convolutions_of_one_pixel_may_be_matrices(key, abstract, params, exported):
    stored = as_matrices(exported[key])

    shrunk = [name for name in stored if stored[name].shape != exported[key][name].shape]
    kinds = ("proj_in", "proj_out", "conv_shortcut") if key == "unet" else ("quant_conv",)
    for kind in kinds:
        assert any(f".{kind}." in name for name in shrunk)
    assert_same(read(key, abstract, stored), params[key])


def test_one_tensor_under_both_names_is_refused(abstract, exported):
    name = "vae.encoder.mid_block.attentions.0.query.bias"
    twice = exported["vae"] | {name.replace("query", "to_q"): exported["vae"][name]}
    with pytest.raises(CheckpointError, match=r"unknown tensors vae\.encoder.*\.to_q\.bias$"):
        match("vae", abstract, twice)


@pytest.mark.parametrize("dtype", ["f2", "f8", ml_dtypes.bfloat16])
def test_other_floats_are_cast(dtype, abstract, exported):
    stored = {name: data.astype(dtype) for name, data in exported["subject_fusion"].items()}
    expected = {name: data.astype("f4") for name, data in stored.items()}

    found = read("subject_fusion", abstract, stored)
    assert_same(found, read("subject_fusion", abstract, expected))


# What is wrong is named.


@pytest.mark.parametrize("key", KEYS)
def test_every_tensor_is_needed(key, abstract, exported):
    for name in exported[key]:
        rest = {other: data for other, data in exported[key].items() if other != name}
        with pytest.raises(CheckpointError) as error:
            match(key, abstract, rest)
        assert str(error.value) == f"{WHERE} lacks the tensors {name}"


@pytest.mark.parametrize("key", KEYS)
def test_every_shape_is_checked(key, abstract, exported):
    for name, data in exported[key].items():
        wrong = data[:-1]
        with pytest.raises(CheckpointError) as error:
            match(key, abstract, exported[key] | {name: wrong})
        message = f"{WHERE} has tensors of another shape: {name} is {wrong.shape}, expected "
        assert str(error.value) == message + str(data.shape)


@pytest.mark.parametrize(
    ("key", "name", "shape"),
    [
        ("unet", "unet.conv_in.weight", (8, 4)),  # a 3x3 convolution is no matrix
        ("unet", "unet.conv_in.weight", (3, 3, 4, 8)),  # our layout
        ("unet", "unet.conv_in.bias", ()),
        ("unet", "unet.conv_in.bias", (1, 8)),
        ("unet", "unet.time_embedding.linear_1.weight", (8, 32)),
        ("unet", "unet.time_embedding.linear_1.weight", (32, 8, 1)),
        ("unet", "unet.time_embedding.linear_1.weight", (32, 8, 1, 2)),
        ("unet", "unet.time_embedding.linear_1.bias", (32, 1, 1, 1)),
        ("vae", "vae.quant_conv.weight", (8, 8, 1)),
    ],
)
def test_no_other_form_is_accepted(key, name, shape, abstract, exported):
    wrong = exported[key] | {name: np.zeros(shape, "f4")}
    with pytest.raises(CheckpointError, match=re.escape(f"{name} is {shape}, expected")):
        match(key, abstract, wrong)


@pytest.mark.parametrize(
    "name",
    [
        "unet.conv_in.weights",
        "unet.conv_in.weight.1",
        "unet.position_ids",
        "unet.down_blocks.0.attentions.9.norm.weight",
        "conv_in.weight",
        "image_encoder.visual_projection.weight",
        "",
    ],
)
def test_unknown_tensors(name, abstract, exported):
    with pytest.raises(CheckpointError) as error:
        match("unet", abstract, exported["unet"] | {name: np.zeros(3, "f4")})
    assert str(error.value) == f"{WHERE} has unknown tensors {name}"


def test_all_problems_at_once(abstract, exported):
    tensors = dict(exported["unet"])
    del tensors["unet.conv_in.bias"]
    tensors["unet.conv_out.bias"] = np.zeros(5, "f4")
    tensors["unet.conv_norm_out.bias"] = np.zeros(8, "i8")
    tensors["epoch"] = np.zeros((), "f4")
    with pytest.raises(CheckpointError) as error:
        match("unet", abstract, tensors)
    assert str(error.value) == (
        "sdm.bin lacks the tensors unet.conv_in.bias; "
        "has tensors of another shape: unet.conv_out.bias is (5,), expected (4,); "
        "has tensors that are no floats: unet.conv_norm_out.bias is int64; "
        "has unknown tensors epoch"
    )


def test_long_lists_are_cut(abstract, exported):
    rest = dict(list(exported["unet"].items())[12:])
    with pytest.raises(CheckpointError) as error:
        match("unet", abstract, rest)
    assert str(error.value).count("unet.") == 5
    assert str(error.value).endswith(" and 7 more")


@pytest.mark.parametrize("dtype", ["?", "u1", "i1", "i2", "i4", "i8"])
def test_integers_are_no_weights(dtype, abstract, exported):
    name = "postfuse_module.mlp1.fc1.weight"
    wrong = exported["subject_fusion"][name].astype(dtype)
    with pytest.raises(CheckpointError, match=rf"^{WHERE} .*no floats: {name} is {wrong.dtype}$"):
        match("subject_fusion", abstract, exported["subject_fusion"] | {name: wrong})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["mlp1.fc1.weight", "layer_norm.weight", "mlp2.fc2.bias"])
def test_values_that_are_not_finite(value, dtype, name, abstract, exported):
    name = f"postfuse_module.{name}"
    wrong = exported["subject_fusion"][name].astype(dtype)
    wrong.flat[[1, 3]] = value
    message = f"{WHERE}: {name} has 2 values of {wrong.size} that are NaN or infinite"
    for place_dtype in ("float32", "bfloat16"):
        with pytest.raises(CheckpointError) as error:
            read(
                "subject_fusion",
                abstract,
                exported["subject_fusion"] | {name: wrong},
                place(place_dtype),
            )
        assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("text_encoder", ["text_encoder.embeddings.position_ids"]),
        ("image_encoder", ["image_encoder.vision_model.embeddings.position_ids"]),
        ("unet", []),
    ],
)
def test_buffers_are_left_behind(key, names, abstract, exported):
    buffers = {name: np.arange(5)[None] for name in names}

    found, left = match(key, abstract, buffers | exported[key])

    assert left == names
    assert {tensor.name for tensor in found[key].values()} == exported[key].keys()


def test_buffers_of_other_names_are_unknown(abstract, exported):
    for name in ("embeddings.position_ids", "text_encoder.embeddings.position_ids.x"):
        with pytest.raises(CheckpointError, match=f"unknown tensors {re.escape(name)}"):
            match("text_encoder", abstract, exported["text_encoder"] | {name: np.arange(5)})


# Where parameters live.


def test_norms_and_biases_stay_float32(abstract, exported):
    for key in ("unet", "image_encoder"):
        loaded = flatten(read(key, abstract, exported[key], place("bfloat16")))
        expected = flatten(read(key, abstract, exported[key]))
        for path, array in loaded.items():
            is_small = path[-1] in ("bias", "scale", "class_embedding")
            assert array.dtype == ("float32" if is_small else "bfloat16"), path
            assert bits(array) == bits(expected[path].astype(array.dtype))


def test_sharding_is_honoured(abstract, params, exported):
    mesh = sharding.make_mesh(fsdp=4)
    asked = {}

    def place_leaf(path, shape):
        asked[path] = shape
        spec = PartitionSpec(*[None] * (len(shape) - 1), "fsdp") if path[0] == "conv_in" else ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    loaded = read("unet", abstract, exported["unet"], Placement("float32", place_leaf))

    assert asked == {path: leaf.shape for path, leaf in flatten(abstract["unet"]).items()}
    shards = loaded["conv_in"]["kernel"].addressable_shards
    assert len(shards) == 8
    assert {shard.data.shape for shard in shards} == {(3, 3, 4, 2)}
    assert {shard.data.shape for shard in loaded["conv_in"]["bias"].addressable_shards} == {(2,)}
    whole = loaded["conv_out"]["kernel"]
    assert whole.sharding.is_fully_replicated
    assert len(whole.addressable_shards) == 8
    assert_same(loaded, params["unet"])


def test_progress_is_one_per_tensor(abstract, exported):
    counts = []

    read("vae", abstract, exported["vae"], place(advance=counts.append))

    assert counts == [1] * len(exported["vae"])
