"""Tensors of the zip files that `torch.save` writes, read without PyTorch and without its risks."""

import dataclasses
import enum
import math
import pickletools
import re
import warnings
import zipfile
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.torch.lazy_tensor import LazyTensor
from fd_jax.errors import CheckpointError

# The pickle of a Stable Diffusion UNet has 0.2 MB. A byte of a hostile one may take 60 bytes of
# memory.
_MAX_PICKLE_SIZE = 16 * 2**20
_MAX_NDIM = 32


def open_torch(path: Path) -> dict[str, LazyTensor]:
    """Returns the tensors of a state dict that `torch.save` wrote. Raises CheckpointError."""
    with file_errors(f"{path}: not a readable state dict of torch.save"):
        archive = _Archive(path)
        content = _unpickle(archive.read("data.pkl", _MAX_PICKLE_SIZE))
        content = _state_dict(content)
        skipped = _plain_values(content)
        tensors = {
            name: _lazy_tensor(archive, name, tensor)
            for name, tensor in content.items()
            if name not in skipped
        }
    if skipped:
        names = abbreviate([repr(name) for name in skipped])
        warnings.warn(f"{path}: {names} skipped, which are no tensors", stacklevel=3)
    return tensors


def _state_dict(content: object) -> dict:
    """Returns the dict of tensors: the content itself, or the only such dict in it."""
    if not isinstance(content, dict):
        raise ValueError(f"the top level is a {type(content).__name__}, expected a dict of tensors")
    has_tensors = _holds_tensors(content)
    if isinstance(content.get("state_dict"), dict):
        if has_tensors:
            raise ValueError("tensors both in and next to `state_dict`, expected one place")
        return content["state_dict"]
    inner = [key for key, value in content.items() if _holds_tensors(value)]
    if has_tensors or not inner:
        return content
    if len(inner) > 1:
        raise ValueError(f"tensors in each of {inner}, expected one state dict")
    return content[inner[0]]


def _holds_tensors(value: object) -> bool:
    return isinstance(value, dict) and any(isinstance(x, _Tensor) for x in value.values())


def _plain_values(content: dict) -> list[str]:
    """Returns the names of numbers, texts and objects beside tensors, such as `epoch`."""
    if not _holds_tensors(content):
        return []
    plain = (int, float, str, type(None), _Skipped)
    return [
        name
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, plain)
    ]


class _Archive:
    """Zip file of `torch.save`: entries in one folder, none compressed."""

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
        """Returns the size of an entry. Checks that reading it takes no more memory than that."""
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
    with file_errors(where):
        size, needed = archive.size(entry), storage.numel * itemsize
        if size < needed:
            raise ValueError(f"{entry!r} has {size} bytes, expected {needed}")

    return LazyTensor(name, shape, storage.dtype, partial(_load, archive, tensor, where))


def _load(archive: _Archive, tensor: _Tensor, where: str) -> np.ndarray:
    """Reads a tensor that `_lazy_tensor` has accepted."""
    storage, shape = tensor.storage, tensor.shape
    entry = f"data/{storage.key}"
    with file_errors(where):
        content = archive.read(entry, archive.size(entry))
        flat = np.frombuffer(content, storage.dtype, storage.numel)
    if not all(shape):
        return np.empty(shape, storage.dtype)
    # The stride of an axis of length 1 means nothing, and may be more than numpy can take.
    lengths = zip(shape, tensor.strides, strict=True)
    steps = [step * storage.dtype.itemsize if n > 1 else 0 for n, step in lengths]
    view = np.lib.stride_tricks.as_strided
    return view(flat[tensor.offset :], shape, steps, writeable=False)


@dataclasses.dataclass(frozen=True)
class _Skipped:
    """An object beside the weights, of which nothing but the name is kept."""

    name: str


# Keys that are nested tuples could exhaust the C stack when they are hashed.
_KEYS = (str, int, float, type(None), _Skipped)


class _Function(enum.Enum):
    ORDERED_DICT = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"


_INTEGERS = {"Bool": "?", "Byte": "u1", "Char": "i1", "Short": "i2", "Int": "i4", "Long": "i8"}
_FLOATS = {"Half": "f2", "Float": "f4", "Double": "f8", "BFloat16": ml_dtypes.bfloat16}
_GLOBALS = {function.value: function for function in _Function} | {
    f"torch.{name}Storage": np.dtype(dtype) for name, dtype in (_INTEGERS | _FLOATS).items()
}
# What Lightning and others pickle beside the weights: callbacks, options, a best score. Stands in
# the result as its name alone.
_HARMLESS = re.compile(
    r"(pytorch_)?lightning(\.pytorch|_fabric)?\.(callbacks|utilities)\.[\w.]+|omegaconf\.[\w.]+"
    r"|numpy\._?core\.multiarray\.scalar|numpy\.dtype|_codecs\.encode|argparse\.Namespace"
    r"|collections\.defaultdict|pathlib\.(Posix|Windows)Path|torch\.(Size|device|float32|float16)"
    r"|typing\.Any|(builtins|__builtin__)\.(dict|list|set|int|float|str)"
)
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def _unpickle(data: bytes) -> object:
    """Reads a pickle of dicts, lists, tuples, numbers, strings and tensors.

    The `pickle` module would import and call whatever the file names. Here globals are looked up
    in `_GLOBALS`, nothing is called, and opcodes that `torch.save` does not write are refused.
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
                stack.append(_global(str(argument).replace(" ", ".")))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE" | "NEWOBJ" as name:
                function, arguments = pop_from(-2)
                if name == "NEWOBJ" and not isinstance(function, _Skipped):
                    raise ValueError("the pickle uses opcode NEWOBJ, which no state dict needs")
                stack.append(_call(function, arguments))
            case "BUILD":  # of `_metadata`, an attribute of the dict that `Module.state_dict` makes
                owner, state = pop_from(-2)
                if not isinstance(owner, _Skipped) and not (
                    isinstance(owner, dict) and isinstance(state, dict)
                ):
                    raise ValueError(f"the pickle sets attributes of a {type(owner).__name__}")
                stack.append(owner)
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"the pickle uses opcode {name}, which no state dict needs")
    raise ValueError("the pickle does not end")


def _global(name: str) -> object:
    if name in _GLOBALS:
        return _GLOBALS[name]
    if _HARMLESS.fullmatch(name):
        return _Skipped(name)
    raise ValueError(f"the pickle asks for {name!r}, which no state dict needs")


def _fill(target: object, items: list) -> None:
    match target:
        case list():
            target.extend(items)
        case _Skipped():
            pass
        case dict() if all(isinstance(key, _KEYS) for key in items[::2]):
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
        case _Skipped(), _:
            return function
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
