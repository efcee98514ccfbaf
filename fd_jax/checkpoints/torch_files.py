"""Tensors of safetensors and PyTorch files, read on demand and without PyTorch."""

import contextlib
import dataclasses
import enum
import json
import math
import os
import pickletools
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PureWindowsPath

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from fd_jax.errors import InputError

_SAFETENSORS_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    **{f"F{8 * size}": np.dtype(f"f{size}") for size in (2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
}
# What a file is that holds no weights, by its first bytes.
_MISTAKES = (
    (b"version https://git-lfs", "is a git-lfs pointer, get the file itself with `git lfs pull`"),
    (b"<", "is a web page (HTML or XML), saved in place of the file by a failed download"),
    (
        b"\x80",
        "is a pickle without zip archive, as of PyTorch before 1.6: in an environment with torch, "
        "load it with torch.load(weights_only=True) and save it with safetensors",
    ),
)
# What damaged files make `zipfile` (RuntimeError: encrypted), `pickletools` (DeprecationWarning: an
# escape sequence, where warnings are errors), `json` and safetensors raise, and `_unpickle`
# (LookupError: nothing on the stack or in the memo).
_FILE_ERRORS = (
    *(OSError, EOFError, RuntimeError, ValueError, LookupError, struct.error),
    *(DeprecationWarning, zipfile.BadZipFile, safetensors.SafetensorError),
)
# The pickle of a Stable Diffusion UNet has 0.2 MB; a hostile byte costs up to 60 of memory.
_MAX_PICKLE_SIZE = 16 * 2**20
_MAX_NDIM = 32


class CheckpointError(InputError):
    """A checkpoint file is missing, damaged, or not what it should be."""


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor on disk: its name, shape and dtype are known, its data is read on demand."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    _load: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)

    def read(self) -> np.ndarray:
        """Returns the data, maybe as a read-only strided view. Raises CheckpointError."""
        return self._load()


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
    return _OPENERS[_kind(path)](path)


def find_weights(folder: str | os.PathLike, stem: str) -> Path:
    """Returns the weight file of a diffusers or transformers folder.

    Args:
        folder: Folder of one model.
        stem: `diffusion_pytorch_model` for diffusers; `model` for transformers, which stands for
            `pytorch_model` too.

    Returns:
        The file to give to `open_tensors`: safetensors before pickle, one file before shards.

    Raises:
        CheckpointError: The folder holds no such file.
    """
    folder = Path(folder)
    stems = (stem, "pytorch_model") if stem == "model" else (stem,)
    suffixes = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json")
    names = [stem + suffix for suffix in suffixes for stem in stems]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    with _errors(f"{folder}: cannot list the folder"):
        held = sorted(entry.name for entry in folder.iterdir())
    raise CheckpointError(f"{folder} holds {held}, expected one of {names}")


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
    # safetensors writes the memory of an array as it lies there, whatever the strides.
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with (
        _errors(f"{path}: cannot write the file"),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
    ):
        plain, temporary = Path(folder, "plain"), Path(folder, "safetensors")
        save_file(dense, temporary, metadata)
        # safetensors lets only the owner read its files; take the mode the umask gives.
        plain.touch()
        temporary.chmod(plain.stat().st_mode)
        os.replace(temporary, path)


@contextlib.contextmanager
def _errors(problem: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except _FILE_ERRORS as error:
        # The text of these alone says nothing: a key, or none at all.
        found = repr(error) if isinstance(error, LookupError | EOFError) else error
        raise CheckpointError(f"{problem}: {found}") from error


def _kind(path: Path) -> str:
    with _errors(f"{path}: cannot read the file"), path.open("rb") as file:
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
    with _errors(f"{path}: not a JSON file"):
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
    def lazy_tensor(name: str) -> LazyTensor:
        def load() -> np.ndarray:
            with _errors(f"{path}: tensor {name!r}"):
                return file.get_tensor(name)

        header = file.get_slice(name)
        dtype = _SAFETENSORS_DTYPES.get(header.get_dtype())
        if dtype is None:
            raise CheckpointError(
                f"{path}: tensor {name!r} is {header.get_dtype()}, expected one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}"
            )
        return LazyTensor(name, tuple(header.get_shape()), dtype, load)

    with _errors(f"{path}: damaged or truncated safetensors file"):
        file = safetensors.safe_open(path, framework="np")
        return {name: lazy_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _open_torch(path: Path) -> dict[str, LazyTensor]:
    with _errors(f"{path}: not a readable state dict of torch.save"):
        archive = _Archive(path)
        content = _unpickle(archive.read("data.pkl", _MAX_PICKLE_SIZE))
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            if any(isinstance(value, _Tensor) for value in content.values()):
                raise ValueError("tensors both in and next to `state_dict`, expected one place")
            content = content["state_dict"]
        if not isinstance(content, dict):
            found = type(content).__name__
            raise ValueError(f"the top level is a {found}, expected a dict of tensors")
        return {name: _lazy_tensor(archive, name, tensor) for name, tensor in content.items()}


_OPENERS = {"index": _open_index, "safetensors": _open_safetensors, "torch": _open_torch}


class _Archive:
    """A zip file as `torch.save` writes it: entries in one folder, none compressed."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"damaged or truncated zip file: {error}") from error
        names = self._zip.namelist()
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise ValueError(f"the zip file has {len(pickles)} data.pkl, expected one")
        self._root = pickles[0].removesuffix("data.pkl")
        if self._root + "byteorder" in names and self.read("byteorder", 16) != b"little":
            raise ValueError("byteorder is big, expected little")

    def size(self, name: str) -> int:
        """Returns the size of an entry, after checks that reading it takes no more memory."""
        try:
            entry = self._zip.getinfo(self._root + name)
        except KeyError:
            raise ValueError(f"{name!r} is not in the zip file") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{name!r} is compressed, expected it stored")
        if entry.file_size > (file_size := self.path.stat().st_size):
            raise ValueError(f"{name!r} has {entry.file_size} bytes, the zip file {file_size}")
        return entry.file_size

    def read(self, name: str, max_size: int) -> bytes:
        if (size := self.size(name)) > max_size:
            raise ValueError(f"{name!r} has {size} bytes, expected at most {max_size}")
        return self._zip.read(self._root + name)


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    numel: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor as pickled; offset and strides count elements of the storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _lazy_tensor(archive: _Archive, name: object, tensor: object) -> LazyTensor:
    if not isinstance(name, str) or not isinstance(tensor, _Tensor):
        raise ValueError(f"{name!r} is a {type(tensor).__name__}, expected a tensor with a name")
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    itemsize = storage.dtype.itemsize
    where = f"{archive.path}: tensor {name!r}"
    entry = f"data/{storage.key}"
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=False))
    # More elements than in the storage are refused even if strides of 0 repeat them: a few bytes
    # could claim any amount of memory.
    if not (
        len(shape) == len(strides) <= _MAX_NDIM
        and min(storage.numel, tensor.offset, *shape, *strides) >= 0
        and math.prod(shape) <= storage.numel
        and math.prod(n or 1 for n in shape) * itemsize < 2**63
        and (last < storage.numel if all(shape) else tensor.offset <= storage.numel)
    ):
        raise CheckpointError(
            f"{where}: offset {tensor.offset}, shape {shape}, strides {strides} are out of its "
            f"storage of {storage.numel} elements"
        )
    with _errors(where):
        size, needed = archive.size(entry), storage.numel * itemsize
        if size < needed:
            raise ValueError(f"{entry!r} has {size} bytes, expected {needed}")

    def load() -> np.ndarray:
        with _errors(where):
            flat = np.frombuffer(archive.read(entry, size), storage.dtype, storage.numel)
        if not all(shape):
            return np.empty(shape, storage.dtype)
        # The stride of an axis of length 1 means nothing, and may be more than numpy can take.
        steps = [step * itemsize if n > 1 else 0 for n, step in zip(shape, strides, strict=True)]
        view = np.lib.stride_tricks.as_strided
        return view(flat[tensor.offset :], shape, steps, writeable=False)

    return LazyTensor(name, shape, storage.dtype, load)


class _Function(enum.Enum):
    ORDERED_DICT = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"


_INTEGERS = {"Bool": "?", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_FLOATS = {"Half": "f2", "Float": "f4", "Double": "f8", "BFloat16": ml_dtypes.bfloat16}
_GLOBALS = {function.value: function for function in _Function} | {
    f"torch.{name}Storage": np.dtype(dtype) for name, dtype in (_INTEGERS | _FLOATS).items()
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _unpickle(data: bytes) -> object:
    """Builds what `data` describes, of dicts, lists, tuples, numbers, strings and `_Tensor`s.

    The `pickle` module would import and call what it is told to. Here globals are looked up in
    `_GLOBALS`, nothing is called, and what `torch.save` does not write by default is refused.
    """
    stack, marks, memo = [], [], {}

    def pop_from(start: int) -> list:
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case "PROTO":
                pass
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop_from(-int(name[-1]))))
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_from(marks.pop())))
            case "APPEND" | "APPENDS" | "SETITEM" | "SETITEMS" as name:
                start = {"APPEND": -1, "SETITEM": -2}.get(name)
                items = pop_from(marks.pop() if start is None else start)
                _fill(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if (name := argument.replace(" ", ".")) not in _GLOBALS:
                    raise ValueError(f"the pickle asks for {name!r}, which no state dict needs")
                stack.append(_GLOBALS[name])
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                function, arguments = pop_from(-2)
                stack.append(_call(function, arguments))
            case "BUILD":  # of `_metadata`, an attribute of the dict that `Module.state_dict` makes
                owner, state = pop_from(-2)
                if not isinstance(owner, dict) or not isinstance(state, dict):
                    raise ValueError(f"the pickle sets attributes of a {type(owner).__name__}")
                stack.append(owner)
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"the pickle uses opcode {name}, which no state dict needs")
    raise ValueError("the pickle does not end")


def _fill(target: object, items: list) -> None:
    match target:
        case list():
            target.extend(items)
        # Keys that are nested tuples could exhaust the C stack when they are hashed.
        case dict() if all(isinstance(key, str | int | float | None) for key in items[::2]):
            target.update(zip(items[::2], items[1::2], strict=True))
        case _:
            raise ValueError(f"the pickle puts items into a {type(target).__name__}")


def _storage(persistent_id: object) -> _Storage:
    match persistent_id:
        case (str(kind), np.dtype() as dtype, str(key), str(), int(numel)) if kind == "storage":
            return _Storage(dtype, key, numel)
    raise ValueError("the pickle refers to something else than a storage of plain numbers")


def _call(function: object, arguments: object) -> object:
    match function, arguments:
        case _Function.ORDERED_DICT, ():
            return {}
        case _Function.PARAMETER, (_Tensor() as view, _, _):
            return view
        case (
            _Function.TENSOR,
            (_Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _),
        ) if all(type(n) is int for n in shape + strides):
            return _Tensor(storage, offset, shape, strides)
    name = function.value if isinstance(function, _Function) else type(function).__name__
    raise ValueError(f"the pickle calls {name} with arguments that no state dict needs")
