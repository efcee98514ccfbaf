"""Writes what `torch.save` would write of a state dict, without PyTorch."""

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fd_jax.checkpoints.errors import file_errors
from fd_jax.errors import CheckpointError
from fd_jax.files import atomic_file

_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}
# From here on an entry of a zip file needs wider fields.
_ZIP64 = 2**31


def write_torch(path: str | os.PathLike, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes tensors as they come to a file for `torch.load`, whole or not at all.

    Args:
        path: The file.
        tensors: Names and arrays: float32, float16, bfloat16 or int64.

    Raises:
        CheckpointError: A dtype is not supported, or the file cannot be written.
    """
    path = Path(path)
    entries = []
    with (
        file_errors(f"{path}: cannot write the file"),
        atomic_file(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
    ):
        for name, tensor in tensors:
            if tensor.dtype.name not in _STORAGES:
                raise CheckpointError(
                    f"{path}: tensor {name!r} is {tensor.dtype}, expected one of "
                    f"{', '.join(_STORAGES)}"
                )
            key = str(len(entries))
            with archive.open(
                zipfile.ZipInfo(f"archive/data/{key}"), "w", force_zip64=tensor.nbytes >= _ZIP64
            ) as entry:
                entry.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
            entries.append(_string(name) + _tensor(key, tensor))
        pickled = b"\x80\x02}(" + b"".join(entries) + b"u."
        for name, data in (
            ("data.pkl", pickled),
            ("byteorder", b"little"),
            ("version", b"3\n"),
        ):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


# Opcodes of pickle's protocol 2 that push a value.


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    strides = [stride // tensor.itemsize for stride in np.empty(tensor.shape, tensor.dtype).strides]
    storage = (
        b"("
        + _string("storage")
        + _global("torch", _STORAGES[tensor.dtype.name])
        + _string(key)
        + _string("cpu")
        + _integer(tensor.size)
        + b"tQ"  # a tuple, and what it stands for
    )
    needs_grad, hooks = b"\x89", _global("collections", "OrderedDict") + b")R"
    arguments = storage + _integer(0) + _tuple(tensor.shape) + _tuple(strides) + needs_grad + hooks
    return _global("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def _string(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integer(number: int) -> bytes:
    if number < 2**31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + struct.pack("<q", number)


def _tuple(numbers: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
