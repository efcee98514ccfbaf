import contextlib
import json
import pickle
import random
import stat
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from fd_jax.checkpoints.torch.files import LazyTensor, find_weights, open_tensors, write_safetensors
from fd_jax.errors import CheckpointError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [BFLOAT16, "f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?"]
# The bytes that a hostile pickle runs; each would make a folder `marker` here.
EVIL = {
    "os.system": b"cos\nsystem\n(Vmkdir marker\ntR",
    "eval": b"cbuiltins\neval\n(V__import__('os').mkdir('marker')\ntR",
    "eval of Python 2": b"c__builtin__\neval\n(V__import__('os').mkdir('marker')\ntR",
    "INST": b"(Vmarker\nios\nmkdir\n",
    "OBJ": b"(cos\nmkdir\nVmarker\no",
    "NEWOBJ": b"cbuiltins\nbytes\n(cbuiltins\nmap\n(cos\nmkdir\n(Vmarker\nlt\x81t\x81",
    "NEWOBJ_EX": b"cbuiltins\nbytes\n(cbuiltins\nmap\n(cos\nmkdir\n(Vmarker\nlt\x81t}\x92",
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x06marker\x85R",
    "BUILD": b"cfunctools\npartial\n(cos\nmkdir\ntR(cos\nmkdir\n(Vmarker\ntNNtb)R",
}


def make_tensors():
    base = np.arange(24, dtype="f4").reshape(4, 6)
    return {
        **{f"dtype{i}": (np.arange(5) % 2).astype(dtype) for i, dtype in enumerate(DTYPES)},
        "base": base,
        "transposed": base.T,
        "part": base[1:3, 2:5],
        "row": base[3],
        "permuted": np.arange(120, dtype="i8").reshape(2, 3, 4, 5).transpose(2, 3, 1, 0),
        "bfloat16": np.arange(-3, 3).astype(BFLOAT16).reshape(2, 3).T,
        "scalar": np.array(3.5, "f2"),
        "empty": np.empty((0, 3), "f4"),
        "empty part": base[4:],
    }


def assert_equal(lazy, expected):
    assert lazy.keys() == expected.keys()
    for name, array in expected.items():
        tensor, data = lazy[name], lazy[name].read()
        assert (tensor.name, tensor.shape, tensor.dtype) == (name, array.shape, array.dtype)
        assert (data.shape, data.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(data, array)


def flip(path, found: bytes, replaced: bytes):
    data = path.read_bytes()
    assert data.count(found) == 1
    path.write_bytes(data.replace(found, replaced))


# Files as they should be.


def test_safetensors_round_trip(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", make_tensors(), {"format": "pt"})

    assert_equal(open_tensors(tmp_path / "x.safetensors"), make_tensors())


def test_torch_round_trip(tmp_path, write_torch_zip):
    path = write_torch_zip(tmp_path / "x.bin", make_tensors())

    assert_equal(open_tensors(path), make_tensors())
    names = zipfile.ZipFile(path).namelist()
    assert sum("data/" in name for name in names) == len(make_tensors()) - 4, "no shared storage"


def test_kind_is_read_from_the_content(tmp_path, write_torch_zip):
    write_torch_zip(tmp_path / "x.safetensors", make_tensors())
    write_safetensors(str(tmp_path / "x.bin"), make_tensors())

    assert_equal(open_tensors(tmp_path / "x.safetensors"), make_tensors())
    assert_equal(open_tensors(str(tmp_path / "x.bin")), make_tensors())


def test_parameters_and_metadata(tmp_path, write_torch_zip, tensor_opcodes):
    """As in `torch.save(module.state_dict(keep_vars=True))`."""
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor_opcodes() + b"\x88}tR"
    ordered = b"ccollections\nOrderedDict\n)R"
    content = (
        ordered + b"(X\x01\x00\x00\x00a" + parameter + b"u}X\x01\x00\x00\x00m" + ordered + b"sb"
    )
    data = np.arange(6, dtype="f4")
    path = write_torch_zip(tmp_path / "x.bin", content, entries={"data/0": data.tobytes()})

    assert_equal(open_tensors(path), {"a": data.reshape(2, 3)})


def test_nested_state_dict(tmp_path, write_torch_zip):
    lightning = {
        "epoch": 3,
        "global_step": 2**40,
        "state_dict": make_tensors(),
        "optimizer_states": [{"lr": 1e-5, "betas": (0.9, 0.999, 1, 2), "amsgrad": False}],
        "callbacks": {"best": None, 0: {"moment": np.zeros(2)}},
    }
    path = write_torch_zip(tmp_path / "x.ckpt", lightning)

    assert_equal(open_tensors(path), make_tensors())


def test_sharded(tmp_path, write_torch_zip):
    tensors = make_tensors()
    names = sorted(tensors)
    parts = [{name: tensors[name] for name in part} for part in (names[:7], names[7:])]
    for suffix, write in ((".safetensors", write_safetensors), (".bin", write_torch_zip)):
        shards = [f"model-0000{i}-of-00002{suffix}" for i in (1, 2)]
        weight_map = {}
        for shard, part in zip(shards, parts, strict=True):
            write(tmp_path / shard, part)
            weight_map |= dict.fromkeys(part, shard)
        index = tmp_path / f"model{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))

        assert_equal(open_tensors(index), tensors)


def test_a_tensor_may_be_called_state_dict(tmp_path, write_torch_zip):
    path = write_torch_zip(tmp_path / "x.bin", {"state_dict": np.zeros(2)})

    assert_equal(open_tensors(path), {"state_dict": np.zeros(2)})


def test_lazy_tensor_compares_what_is_known():
    tensors = [LazyTensor("x", (2,), np.dtype("f4"), lambda n=n: np.full(2, n)) for n in (0, 1)]

    assert tensors[0] == tensors[1]
    assert "_load" not in repr(tensors[0])


# Data is read late.


def test_damaged_storage_is_found_by_read(tmp_path, write_torch_zip):
    good, bad = np.arange(4, dtype="i4"), np.full(3, 0x41424344, "i4")
    path = write_torch_zip(tmp_path / "x.bin", {"good": good, "bad": bad})
    flip(path, b"DCBADCBADCBA", b"DCBADCBADCBB")

    tensors = open_tensors(path)

    np.testing.assert_array_equal(tensors["good"].read(), good)
    with pytest.raises(CheckpointError, match=r"x\.bin: tensor 'bad'.*CRC"):
        tensors["bad"].read()


# Writing.


def test_write_replaces_the_file_or_leaves_it(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": np.zeros(2)})
    for bad in (np.array(["text"]), np.zeros(2, "c8"), np.zeros(2, ml_dtypes.float8_e4m3fn)):
        with pytest.raises(CheckpointError, match=r"tensor 'b' is .*expected one of"):
            write_safetensors(path, {"a": np.ones(2), "b": bad})
    with pytest.raises(CheckpointError, match="cannot write"):  # the folder is a file
        write_safetensors(path / "nowhere", {"a": np.ones(2)})

    assert_equal(open_tensors(path), {"a": np.zeros(2)})
    write_safetensors(path, {"a": np.ones(2)})
    assert_equal(open_tensors(path), {"a": np.ones(2)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"], "left-overs"


def test_written_file_has_the_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    write_safetensors(tmp_path / "x.safetensors", {})

    modes = [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()]
    assert modes[0] == modes[1]


def test_big_endian_arrays_are_written_by_value(tmp_path):
    write_safetensors(tmp_path / "x", {"a": np.arange(3, dtype=">f4")})

    assert_equal(open_tensors(tmp_path / "x"), {"a": np.arange(3, dtype="f4")})


# Finding.


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model", "pytorch_model"])
def test_find_weights_prefers_safetensors_in_one_file(tmp_path, stem):
    names = [f"{stem}{suffix}" for suffix in (".bin.index.json", ".bin")]
    if stem == "model":
        names = [f"pytorch_{name}" for name in names]
    names += [f"{stem}{suffix}" for suffix in (".safetensors.index.json", ".safetensors")]
    for name in names:
        (tmp_path / name).touch()
        assert find_weights(tmp_path, stem) == tmp_path / name


def test_find_weights_says_what_there_is(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"config\.json.*expected one of.*unet\.safetensors"):
        find_weights(tmp_path, "unet")
    with pytest.raises(CheckpointError, match="No such file"):
        find_weights(tmp_path / "nowhere", "unet")


# Files that are something else.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<?xml version='1.0'?><Error/>", "web page"),
        (b"\0" * 100, "starts with"),
        (b"text", "starts with b'text'"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"torch\.load\(weights_only=True\)"),
        (b"PK\x03\x04", "truncated zip"),
        (struct.pack("<Q", 9) + b'{"a":{}}}', "truncated safetensors"),
        (b"{}", "no weight_map"),
        (b'{"weight_map": []}', "no weight_map"),
        (b'{"weight_map": {"a": 1}}', "same folder"),
        (b'{"weight_map"', "not a JSON"),
        (b'{"a": ' * 100_000, "not a JSON"),
        (b'{"\xff": 1}', "not a JSON"),
    ],
)
def test_other_files(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors.*{message}"):
        open_tensors(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        open_tensors(tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="directory"):
        open_tensors(tmp_path)


def test_any_truncation_is_found(tmp_path, write_torch_zip):
    write_safetensors(tmp_path / "x", {"a": np.arange(3)})
    write_torch_zip(tmp_path / "y", {"a": np.arange(3)})
    for path in (tmp_path / "x", tmp_path / "y"):
        data = path.read_bytes()
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(CheckpointError, match=path.name):
                open_tensors(path)


def test_float8_is_named(tmp_path):
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"12")
    with pytest.raises(CheckpointError, match="'w' is F8_E4M3, expected one of"):
        open_tensors(tmp_path / "x")


@pytest.mark.parametrize(
    "shard", ["../x", "/x", "..", ".", "", "sub/x", "sub\\x", "c:x", "x\0", None, "nowhere"]
)
def test_shards_stay_in_the_folder(tmp_path, shard):
    (tmp_path / "sub").mkdir()
    for path in (tmp_path / "x", tmp_path / "sub" / "x"):
        write_safetensors(path, {"a": np.zeros(2)})
    (tmp_path / "sub" / "index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match=r"expected a file of the same|cannot read"):
        open_tensors(tmp_path / "sub" / "index.json")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x", "b": "x", "c": "x"}, r"lacks \['c'\]"),
        ({"a": "x"}, r"holds \['b'\], unknown"),
        ({"a": "x", "b": "y"}, r"x holds \['b'\], unknown"),
        ({"a": "index.json"}, "is an index"),
    ],
)
def test_index_and_shards_agree(tmp_path, weight_map, message):
    write_safetensors(tmp_path / "x", {"a": np.zeros(2), "b": np.zeros(2)})
    write_safetensors(tmp_path / "y", {"b": np.zeros(2)})
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path / "index.json")


# State dicts with something else in them, or under other names.


@pytest.mark.parametrize("plain", [3, 0.5, "5", None, True, "x" * 1000], ids=repr)
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_numbers_and_texts_beside_tensors_are_skipped_by_name(
    tmp_path, write_torch_zip, plain, key
):
    content = make_tensors() | {"epoch": plain}
    path = write_torch_zip(tmp_path / "x.bin", content if key is None else {key: content})
    with pytest.warns(UserWarning, match=r"x.bin: 'epoch' skipped, which are no tensors"):
        found = open_tensors(path)
    assert_equal(found, make_tensors())


@pytest.mark.parametrize(
    "kept",
    [
        b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n",
        b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x03sb",
        b"ccollections\ndefaultdict\ncbuiltins\nlist\n\x85R",
        b"comegaconf.dictconfig\nDictConfig\n)\x81}X\x01\x00\x00\x00aK\x03sb",
    ],
)
def test_what_trainers_keep_is_skipped_by_name(tmp_path, write_torch_zip, kept):
    """As a value, as a key, and beside the tensors themselves; only its name is looked at."""
    for content in (
        {"state_dict": make_tensors(), "hparams": kept, "callbacks": {kept: {"best": kept}}},
        {"state_dict": make_tensors(), "hparams": [kept]},
    ):
        path = write_torch_zip(tmp_path / "x.ckpt", content)
        assert_equal(open_tensors(path), make_tensors())
    path = write_torch_zip(tmp_path / "x.ckpt", make_tensors() | {"hparams": kept})
    with pytest.warns(UserWarning, match=r"x.ckpt: 'hparams' skipped, which are no tensors"):
        assert_equal(open_tensors(path), make_tensors())


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "params", "net"])
def test_a_state_dict_may_be_the_only_one_in_a_dict(tmp_path, write_torch_zip, key):
    content = {"step": 3, "args": {"lr": 1e-3}, key: make_tensors()}
    assert_equal(open_tensors(write_torch_zip(tmp_path / "x.bin", content)), make_tensors())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_names_of_wrapped_modules_are_shortened(tmp_path, write_torch_zip, prefix, kind):
    write = write_torch_zip if kind == "bin" else write_safetensors
    wrapped = {prefix + name: tensor for name, tensor in make_tensors().items()}
    write(tmp_path / "x", wrapped)
    found = open_tensors(tmp_path / "x")
    assert_equal({prefix + name: tensor for name, tensor in found.items()}, wrapped)
    write(
        tmp_path / "x",
        {"unet._orig_mod.a": np.ones(2, "f4"), "postfuse_module.b": np.ones(1, "f4")},
    )
    assert set(open_tensors(tmp_path / "x")) == {"unet.a", "postfuse_module.b"}
    write(tmp_path / "x", {"a": np.ones(2, "f4"), f"{prefix}a": np.ones(2, "f4")})
    with pytest.raises(CheckpointError, match="expected one tensor of that name"):
        open_tensors(tmp_path / "x")


@pytest.mark.parametrize("stem", ["diffusion_pytorch_model", "model"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_half_precision_variants_are_found(tmp_path, stem, kind):
    half = tmp_path / f"{stem}.fp16.{kind}"
    half.touch()
    assert find_weights(tmp_path, stem) == half
    plain = tmp_path / f"{stem}.{kind}"
    plain.touch()
    assert find_weights(tmp_path, stem) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "'epoch' is a int"),
        ({"a": np.zeros(2), "more": {"b": np.zeros(2)}}, "'more' is a dict"),
        ({"model": {"a": np.zeros(2)}, "ema": {"a": np.zeros(2)}}, "each of .'model', 'ema'."),
        ({"a": np.zeros(2), 5: 5}, "5 is a int"),
        ({"state_dict": {5: np.zeros(2)}}, "5 is a"),
        ({"state_dict": {"a": np.zeros(2)}, "b": np.zeros(2)}, "next to `state_dict`"),
        ([1], "top level is a list"),
        (5, "top level is a int"),
    ],
)
def test_other_contents(tmp_path, write_torch_zip, content, message):
    path = write_torch_zip(tmp_path / "x.bin", content)
    with pytest.raises(CheckpointError, match=rf"x\.bin: .*{message}"):
        open_tensors(path)


# Hostile tensors.


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"shape": (2, 4)},
        {"shape": (-2, -3)},
        {"shape": (2,)},
        {"shape": (2**40, 2**40)},
        {"shape": (0, 2**63)},
        {"shape": (2, 0), "offset": 7},
        {"shape": (0, *[2**62] * 40), "strides": (0,) * 41},
        {"shape": (1,) * 33, "strides": (1,) * 33},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (7,), "strides": (0,)},
        {"strides": (4, 1)},
        {"strides": (3, 2)},
        {"strides": (-3, -1), "offset": 5},
        {"strides": (2**62, 1)},
        {"numel": 7},
        {"numel": 2**62},
        {"numel": 5},
        {"numel": -6},
        {"key": "1"},
        {"key": "../data/0"},
        {"key": "/etc/passwd"},
        {"storage": "DoubleStorage"},
        {"storage": "UntypedStorage"},
        {"storage": "ComplexFloatStorage"},
        {"key": 0},
        {"numel": "6"},
        {"numel": 6.0},
        {"offset": "0"},
        {"offset": None},
        {"shape": [2, 3]},
        {"shape": (2.0, 3)},
        {"shape": 6},
        {"strides": ("3", "1")},
        {"strides": (True, True)},
    ],
    ids=str,
)
def test_tensor_outside_of_its_storage(tmp_path, write_torch_zip, tensor_opcodes, fields):
    path = tmp_path / "x.bin"
    storage = {"data/0": bytes(24)}
    write_torch_zip(path, {"w": tensor_opcodes()}, entries=storage)
    assert open_tensors(path)["w"].shape == (2, 3)

    write_torch_zip(path, {"w": tensor_opcodes(**fields)}, entries=storage)
    with pytest.raises(CheckpointError, match=r"x\.bin: .*(tensor 'w'|the pickle)"):
        open_tensors(path)


def test_stride_of_a_single_element_means_nothing(tmp_path, write_torch_zip, tensor_opcodes):
    content = {"w": tensor_opcodes(shape=(1, 6), strides=(2**70, 1))}
    path = write_torch_zip(tmp_path / "x.bin", content, entries={"data/0": bytes(24)})

    assert_equal(open_tensors(path), {"w": np.zeros((1, 6), "f4")})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"byteorder": b"big"}, "byteorder"),
        ({"byteorder": b"little" * 9}, "byteorder"),
        ({"data.pkl": None}, "0 data.pkl"),
        ({"data/0": None}, "tensor 'a': 'data/0' is not in"),
        ({"data/0": b"short"}, "tensor 'a': 'data/0' has 5 bytes, expected 8"),
        ({"data.pkl": b""}, "pickle exhausted"),
    ],
)
def test_entries_of_the_zip_file(tmp_path, write_torch_zip, entries, message):
    path = write_torch_zip(tmp_path / "x.bin", {"a": np.zeros(2, "f4")}, entries=entries)
    with pytest.raises(CheckpointError, match=rf"x\.bin: .*{message}"):
        open_tensors(path)


def test_two_pickles_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("a/data.pkl", b"}.")
        archive.writestr("b/data.pkl", b"}.")
    with pytest.raises(CheckpointError, match=r"2 data\.pkl"):
        open_tensors(tmp_path / "x.bin")


def test_compressed_entries_are_refused(tmp_path, write_torch_zip):
    content = {"a": np.zeros(10_000_000, "u1")}
    path = write_torch_zip(tmp_path / "x.bin", content, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed"):
        open_tensors(path)


def test_claimed_sizes_are_not_believed(tmp_path, write_torch_zip, tensor_opcodes):
    """The directory of the zip file gives 2 GB to a storage of 24 bytes."""
    size = 2**31
    content = {"w": tensor_opcodes(numel=size // 4, shape=(size // 4,), strides=(1,))}
    path = write_torch_zip(tmp_path / "x.bin", content, entries={"data/0": b"\x11" * 24})
    sizes = struct.pack("<LL", 24, 24)
    data = path.read_bytes()
    assert data.count(sizes) == 2  # the local header, and the central directory
    path.write_bytes(data.replace(sizes, struct.pack("<LL", size, size)))
    with pytest.raises(CheckpointError, match=r"'data/0' has 2147483648 bytes, the zip file"):
        open_tensors(path)


def test_large_pickle_is_refused(tmp_path, write_torch_zip):
    content = {"state_dict": {}, "padding": "x" * 2**24}
    path = write_torch_zip(tmp_path / "x.bin", content)
    with pytest.raises(CheckpointError, match=r"'data\.pkl' has .* bytes, expected at most"):
        open_tensors(path)


# Hostile pickles.


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL.keys())
def test_nothing_is_executed(tmp_path, monkeypatch, write_torch_zip, tensor_opcodes, evil):
    monkeypatch.chdir(tmp_path)
    ordered = b"ccollections\nOrderedDict\n"
    places = [
        evil,
        {"a": evil},
        {"state_dict": {}, "ignored": evil},
        {evil: 1},
        {"a": tensor_opcodes(key=evil)},
        {"a": tensor_opcodes(numel=evil)},
        {"a": tensor_opcodes(shape=evil)},
        {"a": tensor_opcodes(hooks=evil)},
        {"a": b"ctorch._utils\n_rebuild_parameter\n(" + tensor_opcodes() + b"\x88" + evil + b"tR"},
        ordered + b"(" + evil + b"tR",
        ordered + b")R}" + b"(Va\n" + evil + b"ub",
        evil + b"0}",
        b"}" + evil + b"b",
    ]
    for content in places:
        path = write_torch_zip(tmp_path / "x.bin", content, entries={"data/0": bytes(24)})
        with pytest.raises(CheckpointError, match=r"x\.bin: .* which no state dict needs"):
            open_tensors(path)
        assert not (tmp_path / "marker").exists()

    # The control: the bytes do what they are here for.
    with contextlib.suppress(TypeError):  # `bytes` does not like what `os.mkdir` returns
        pickle.loads(b"\x80\x02" + evil + b".")
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}Va\n}sb",  # attributes of a function,
        b"ctorch\nFloatStorage\n}b",  # of a dtype,
        b"ccollections\nOrderedDict\n}b",  # of a class,
        b"}Nb",  # a state that is no dict
        b"ctorch\nFloatStorage\n)R",  # call of a dtype
        b"ctorch\nBFloat16Storage\n)R",
        b"}R",
        b"}}R",
        b"NNR",
        b"ccollections\nOrderedDict\n((Va\n}ttR",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R",
        b"ctorch._utils\n_rebuild_parameter\n(}\x88}tR",
        b"ctorch._utils\n_rebuild_parameter_with_state\n(}\x88}}tR",
        b"ctorch._utils\n_rebuild_tensor_v3\n)R",
        b"NQ",
        b"}Q",
        b"(X\x07\x00\x00\x00storagetQ",
        b"X\x07\x00\x00\x00storageQ",
        b"(X\x06\x00\x00\x00modulectorch\nFloatStorage\nX\x01\x00\x00\x000h\x00K\x06tQ",
        b"Pstorage\n",
        b"\x82\x01",  # EXT1
        b"h\xff",  # nothing is in the memo
        b"\x85",
        b"R",
        b"u",
        b"}u",
        b"N)s",
        b"})a",
        b"N)Ns",
        b"})Ns",  # a key that is a tuple
        b"}}Ns",
        b"}]Ns",
        b"}(Nu",  # a key without value
        b"(",
        b"t",
        b"",
        b"\xff",
        b"X\xff\xff\xff\x7fa",
        b"X\x01\x00\x00\x00\xff",
        b"cos\\X\nx\n",  # an escape sequence that is none
        b"I9" + b"9" * 10_000 + b"\n",
        b"\x8b\xff\xff\xff\xff",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff}",
    ],
    ids=repr,
)
def test_strange_pickles(tmp_path, write_torch_zip, opcodes):
    for content in (opcodes, {"state_dict": {}, "ignored": opcodes}):
        path = write_torch_zip(tmp_path / "x.bin", content)
        with pytest.raises(CheckpointError, match=r"x\.bin: "):
            open_tensors(path)


def test_memo_of_any_index_is_small(tmp_path, write_torch_zip):
    """The C unpickler would reserve 16 GB here."""
    path = write_torch_zip(tmp_path / "x.bin", b"}r\xff\xff\xff\x7f")

    assert open_tensors(path) == {}


def test_pickles_that_explode_when_walked(tmp_path, write_torch_zip):
    many = b")q\x00" + b"h\x00\x86q\x00" * 200  # 2**200 tuples, were they written out
    deep = b")" + b"\x85" * 50_000
    for hostile in (many, deep):
        path = write_torch_zip(tmp_path / "x.bin", {"state_dict": {}, "ignored": hostile})
        assert open_tensors(path) == {}
        for content in ({"a": hostile}, {hostile: 1}, hostile + b"Q"):
            path = write_torch_zip(tmp_path / "x.bin", content)
            with pytest.raises(CheckpointError):
                open_tensors(path)


def test_recursive_dict(tmp_path, write_torch_zip):
    path = write_torch_zip(tmp_path / "x.bin", b"}q\x00X\x0a\x00\x00\x00state_dicth\x00s")
    with pytest.raises(CheckpointError, match="'state_dict' is a dict"):
        open_tensors(path)


@pytest.mark.parametrize("kind", ["safetensors", "torch", "pickle", "index"])
def test_random_damage_raises_nothing_else(tmp_path, write_torch_zip, kind):
    path = tmp_path / kind
    tensors = {"a": np.arange(6, dtype="f4").reshape(2, 3).T, "b": np.array(1, BFLOAT16)}
    content = {"epoch": 1, "state_dict": tensors}
    if kind in ("torch", "pickle"):
        write_torch_zip(path, content)
    else:
        write_safetensors(path, tensors)
    if kind == "index":
        path.rename(tmp_path / "shard")
        path.write_text(json.dumps({"weight_map": {"a": "shard", "b": "shard"}}))
    data = path.read_bytes()
    if kind == "pickle":  # damaged before it is put into the zip file, so that its CRC is right
        data = zipfile.ZipFile(path).read("archive/data.pkl")
    rng = random.Random(0)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        if kind == "pickle":
            write_torch_zip(path, content, entries={"data.pkl": bytes(damaged)})
        else:
            path.write_bytes(damaged)
        # CheckpointError is right, and no error too, where the damage is not to be seen.
        with contextlib.suppress(CheckpointError):
            for tensor in open_tensors(path).values():
                assert (tensor.read().shape, tensor.read().dtype) == (tensor.shape, tensor.dtype)
