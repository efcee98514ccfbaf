"""Readers of checkpoints, configs and prompt files for `tests.helpers.fuzz`."""

import io
import json
import shutil
import zipfile

import jax
import numpy as np

from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints.bundle import bundle
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import RunCheckpoints, read_params, save_frozen
from fd_jax.checkpoints.run.model_json import RunModel, write_model
from fd_jax.checkpoints.torch.files import open_tensors, write_safetensors
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.weights import open_weights
from fd_jax.data.captions import load_tokenizer
from fd_jax.errors import InputError
from fd_jax.files import write_json
from fd_jax.inference.prompt_file import read_prompt_file
from fd_jax.networks import make_networks
from fd_jax.training.run_config import check_resumable, write_config
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS
from tests.helpers.fuzz import mutate, mutate_json
from tests.helpers.networks import TINY
from tests.helpers.runs import write_run
from tests.helpers.training import make_config
from tests.helpers.untrained import random_params, write_untrained

# Opcodes with their arguments, of pickles that call, build, import, or refer to what is not there.
OPCODES = (
    *(
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cthis\nd\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
    ),
    *(
        b"R",
        b"b",
        b"o",
        b"\x81",
        b"\x92",
        b"\x93",
        b"ios\nmkdir\n",
        b"Q",
        b"P1\n",
        b"0",
        b"1",
        b"2",
    ),
    *(
        b"}",
        b"]",
        b"(",
        b")",
        b"t",
        b"\x85",
        b"u",
        b"s",
        b"e",
        b"a",
        b"h\0",
        b"q\0",
        b"j\xff\xff\xff\xff",
    ),
    *(b"X\x04\0\0\0true", b"X\xff\xff\xff\xff", b"J\xff\xff\xff\xff", b"\x8a\xff" + b"\xff" * 255),
    *(
        b"I99999999999999999999\n",
        b"F1e999\n",
        b"N",
        b"\x88",
        b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    ),
    *(b"\x80\x05", b"\x97", b"\x98", b"\x82\x01", b"."),
)


def mutate_pickle(rng, content):
    """Puts opcodes between others, or mutates bytes."""
    if rng.random() < 0.3:
        return mutate(rng, content)
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(2, len(content))
        content = content[:place] + rng.choice(OPCODES) + content[place:]
    return content


def place_on_one():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return Placement(np.float32, lambda path, shape: device)


def tensors():
    base = np.arange(24, dtype="f4").reshape(4, 6)
    return {"a": base, "b.weight": base.T.copy(), "c": np.zeros((0, 3), "f4"), "d": np.float16(2)}


def read_all(path):
    for tensor in open_tensors(path).values():
        np.array(tensor.read())


def _tensor_files(folder):
    arrays = {name: np.asarray(array) for name, array in tensors().items()}
    write_safetensors(folder / "x.safetensors", arrays)
    write_torch(folder / "x.bin", arrays.items())
    index = {"weight_map": dict.fromkeys(arrays, "x.safetensors")}
    (folder / "x.index.json").write_text(json.dumps(index))
    with zipfile.ZipFile(folder / "x.bin") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def read_file(name):
        def read(content):
            path = folder / f"mutated.{name}"
            path.write_bytes(content)
            read_all(path)

        return read

    def read_pickle(content):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in entries.items():
                archive.writestr(name, content if name.endswith("data.pkl") else data)
        read_file("zip")(stream.getvalue())

    yield "safetensors", (folder / "x.safetensors").read_bytes(), read_file("st"), "mutated.st"
    yield "torch zip", (folder / "x.bin").read_bytes(), read_file("bin"), "mutated.bin"
    pickled = entries["archive/data.pkl"]
    yield "torch pickle", pickled, read_pickle, "mutated.zip", mutate_pickle
    index = (folder / "x.index.json").read_bytes()
    yield "index of shards", index, read_file("json"), str(folder), mutate_json


def _files_of(root, read, named=None, only=lambda path: True):
    """Yields a reader for each file below a folder, which reads the whole folder."""
    for path in sorted(path for path in root.rglob("*") if path.is_file() and only(path)):
        whole = path.read_bytes()

        def read_changed(content, path=path, whole=whole):
            try:
                path.write_bytes(content)
                read(root)
            finally:
                path.write_bytes(whole)

        is_json = whole.startswith(b"{") and len(whole) < 8192
        name = str(path.relative_to(root.parent))
        yield name, whole, read_changed, named or str(path), mutate_json if is_json else mutate


def _write_small_run(folder):
    """Writes a run of an autoencoder with few arrays, which names no shapes."""
    leaves = {f"vae/{name}/kernel": jax.numpy.ones((4, 6)) for name in "abc"}
    write_model(folder, RunModel("vae", ("vae",), TINY._asdict(), None))
    save_frozen(folder, {"vae/d/bias": jax.numpy.ones(3)})
    write_config(folder, make_config(), {"items": 3})
    with RunCheckpoints(folder) as store:
        store.save(
            1,
            {"step": jax.numpy.int32(1), "params": leaves, "opt_state": ()},
            leaves,
            {},
            {"loss": 1.0},
        )
    return folder


def _read_run(folder):
    shapes = {
        "vae": {name: {"kernel": _shape(4, 6)} for name in "abc"} | {"d": {"bias": _shape(3)}}
    }
    for ema in (True, False):
        read_params(folder, placement=place_on_one(), abstract=shapes, ema=ema)


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, np.float32)


def _open(task=None):
    networks = make_networks(TINY).shapes()

    def read(folder):
        opened = open_weights(folder, task=task)
        parts = [part for part in opened.parts if part in networks]
        opened.load(parts, place_on_one(), networks)

    return read


def readers(folder):
    """Yields names, contents of files and functions that read them, and what errors must name."""
    folder.mkdir(exist_ok=True)
    yield from _tensor_files(folder)

    run = _write_small_run(folder / "run")

    def is_config(path):
        return path.name == "config.json"

    yield from _files_of(run, _read_run, "run", lambda path: not is_config(path))
    yield from _files_of(
        run, lambda run: check_resumable(run, make_config(), {"items": 3}), "run", is_config
    )

    write_untrained(folder / "models", TINY)
    base = folder / "models" / "base"
    shutil.rmtree(base / "tokenizer", ignore_errors=True)
    yield from _files_of(base, _open(), "base", lambda path: path.suffix == ".json")
    yield from _files_of(
        folder / "models" / "clip", _open(), "clip", lambda path: path.suffix == ".json"
    )

    networks = make_networks(TINY)
    params = {part: random_params(getattr(networks, part).abstract, 1, part) for part in SDM_PARTS}
    for kind, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS)):
        write_run(folder / kind, kind, {part: params[part] for part in parts}, TINY)
    bundle(folder / "sdm", folder / "tdm", folder / "bundle", dtype="float32")
    yield from _files_of(folder / "bundle", _open("sdm"), "bundle")

    words = folder / "tokenizer"
    shutil.copytree(TOKENIZER, words)
    yield from _files_of(words, load_tokenizer, "tokenizer")

    prompts = folder / "prompts.jsonl"
    line = {"prompt": "a man", "references": [], "seed": 3, "output": "a", "negative_prompt": ""}
    write_json(folder / "unused.json", line)

    def read_prompts(content):
        prompts.write_bytes(content)
        _, bad_lines = read_prompt_file(prompts)
        for bad in bad_lines:
            raise InputError(f"line {bad.line} of prompts.jsonl: {bad.reason}")

    yield "prompt file", json.dumps(line).encode(), read_prompts, "prompts.jsonl", mutate_json
