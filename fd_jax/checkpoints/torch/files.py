"""Tensors of safetensors and PyTorch files, read on demand and without PyTorch."""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PureWindowsPath

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.torch.lazy_tensor import LazyTensor
from fd_jax.checkpoints.torch.reader import open_torch
from fd_jax.errors import CheckpointError
from fd_jax.files import atomic_file

_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
}
# Files that are often taken for weights, by their first bytes.
_MISTAKES = (
    (b"version https://git-lfs", "is a git-lfs pointer, get the file itself with `git lfs pull`"),
    (b"<", "is a web page (HTML or XML), saved in place of the file by a failed download"),
    (
        b"\x80",
        "is a pickle without zip archive, as of PyTorch before 1.6: in an environment with torch, "
        "load it with torch.load(weights_only=True) and save it with safetensors",
    ),
)


def open_tensors(path: str | os.PathLike) -> dict[str, LazyTensor]:
    """Lists the tensors of a checkpoint file, reading none of them.

    Args:
        path: A safetensors file, a state dict written by `torch.save` (alone or under the key
            `state_dict`, as in Lightning checkpoints), or the JSON index of shards of either
            kind. The content decides, not the suffix. Nothing in a pickle is executed.

    Returns:
        The tensors by name.

    Raises:
        CheckpointError: The file is none of these, or damaged.
    """
    path = Path(path)
    return _without_wrappers(path, _OPENERS[_kind(path)](path))


# Modules that DistributedDataParallel and torch.compile wrap others in.
_WRAPPERS = ("module", "_orig_mod")


def _without_wrappers(path: Path, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Returns the tensors by their names without wrappers."""
    plain: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        own = ".".join(level for level in name.split(".") if level not in _WRAPPERS)
        if own in plain:
            raise CheckpointError(
                f"{path} holds {plain[own].name!r} and {name!r}, expected one tensor of that name"
            )
        plain[own] = tensor
    return plain


def find_weights(folder: str | os.PathLike, stem: str) -> Path:
    """Returns the weight file of a diffusers or transformers folder.

    Args:
        folder: Folder of one model.
        stem: `diffusion_pytorch_model` for diffusers; `model` for transformers, which stands for
            `pytorch_model` too.

    Returns:
        The file to give to `open_tensors`: safetensors before pickle, one file before shards,
        the plain file before the variant `fp16`.

    Raises:
        CheckpointError: The folder holds no such file.
    """
    folder = Path(folder)
    names = weight_files(stem)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    with file_errors(f"{folder}: cannot list the folder"):
        held = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(f"{folder} holds {held}, expected one of {names}")


def has_weights(folder: str | os.PathLike, stem: str) -> bool:
    """Whether `find_weights` finds a file."""
    return any(Path(folder, name).is_file() for name in weight_files(stem))


def weight_files(stem: str) -> list[str]:
    """Returns the names of weight files in the order in which `find_weights` looks for them."""
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    kinds = ("safetensors", "bin")
    plain = [f"{stem}.{kind}{i}" for kind in kinds for i in ("", ".index.json") for stem in stems]
    # Variants of diffusers; the index of one has its name in another place.
    halves = [f"{stem}.fp16.{kind}" for kind in kinds for stem in stems]
    return plain + halves + [f"{stem}.{kind}.index.fp16.json" for kind in kinds for stem in stems]


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes `tensors` to a safetensors file, whole or not at all.

    Raises:
        CheckpointError: A dtype is not supported, or the file cannot be written.
    """
    path = Path(path)
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("=") not in _SAFETENSORS_DTYPES.values():
            raise CheckpointError(
                f"{path}: tensor {name!r} is {tensor.dtype}, expected one of "
                f"{', '.join(map(str, _SAFETENSORS_DTYPES.values()))}"
            )
    # safetensors writes an array's memory and ignores its strides.
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with file_errors(f"{path}: cannot write the file"), atomic_file(path) as temporary:
        save_file(dense, temporary, metadata)


def _kind(path: Path) -> str:
    with file_errors(f"{path}: cannot read the file"), path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head[4:9] == b"\0\0\0\0{":  # the upper half of the header's length, then the header
        return "safetensors"
    text = head.lstrip().lower()
    if text.startswith(b"{"):
        return "index"
    found = f"starts with {head[:16]!r}" if head else "is empty"
    found = next((mistake for start, mistake in _MISTAKES if text.startswith(start)), found)
    raise CheckpointError(f"{path} {found}; expected safetensors, a torch zip file or an index")


def _open_index(path: Path) -> dict[str, LazyTensor]:
    with file_errors(f"{path}: not a JSON file"):
        index = json.loads(path.read_bytes())
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: no weight_map, expected an index of shards")
    for name, shard in weight_map.items():
        # Windows' rules know every separator, so the shard is in this folder on any system.
        if not isinstance(shard, str) or shard != PureWindowsPath(shard).name or shard == "..":
            raise CheckpointError(
                f"{path}: tensor {name!r} is in {shard!r}, expected a file of the same folder"
            )
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        if (kind := _kind(path.parent / shard)) == "index":
            raise CheckpointError(f"{path}: {shard} is an index, expected a file of tensors")
        found = _OPENERS[kind](path.parent / shard)
        expected = {name for name, file in weight_map.items() if file == shard}
        if missing := sorted(expected - found.keys()):
            raise CheckpointError(f"{path.parent / shard} lacks {missing}, which {path} expects")
        if unknown := sorted(found.keys() - expected):
            raise CheckpointError(f"{path.parent / shard} holds {unknown}, unknown to {path}")
        tensors |= found
    return tensors


def _open_safetensors(path: Path) -> dict[str, LazyTensor]:
    with file_errors(f"{path}: damaged or truncated safetensors file"):
        file = safetensors.safe_open(path, framework="np")
        return {name: _lazy_tensor(file, name, path) for name in file.keys()}  # noqa: SIM118


def _lazy_tensor(file: safetensors.safe_open, name: str, path: Path) -> LazyTensor:
    header = file.get_slice(name)
    dtype = _SAFETENSORS_DTYPES.get(header.get_dtype())
    if dtype is None:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {header.get_dtype()}, expected one of "
            f"{', '.join(_SAFETENSORS_DTYPES)}"
        )
    return LazyTensor(name, tuple(header.get_shape()), dtype, partial(_read, file, name, path))


def _read(file: safetensors.safe_open, name: str, path: Path) -> np.ndarray:
    with file_errors(f"{path}: tensor {name!r}"):
        return file.get_tensor(name)


_OPENERS = {"index": _open_index, "safetensors": _open_safetensors, "torch": open_torch}
