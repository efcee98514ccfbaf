"""Files as `torch.save` writes them, made without torch."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

STORAGES = {
    "bool": "BoolStorage",
    "uint8": "ByteStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
}


def opcodes(value) -> bytes:
    """Opcodes that push `value`; bytes are taken for opcodes already."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
    return pickle.dumps(value, protocol=2)[2:-1]


def make_tensor_opcodes(
    storage="FloatStorage", key="0", numel=6, offset=0, shape=(2, 3), strides=(3, 1), hooks=None
) -> bytes:
    """Opcodes that push a tensor."""
    persistent_id = (b"ctorch\n" + storage.encode() + b"\n", key, "cpu", numel)
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + b"".join(map(opcodes, ("storage", *persistent_id)))
        + b"tQ"
        + b"".join(map(opcodes, (offset, shape, strides, False)))
        + (hooks or b"ccollections\nOrderedDict\n)R")
        + b"tR"
    )


def write(path, content, *, entries=None, compression=zipfile.ZIP_STORED) -> Path:
    """Writes a torch zip file.

    Args:
        path: The file.
        content: What to pickle: dicts, also nested, of arrays and plain values, or opcodes (as
            bytes). Strides are kept, and views of one array share its storage, as in torch.
        entries: Entries of the zip file to add or replace, or to leave out where None.
        compression: Of all entries.
    """
    storages = {}

    def encode(value) -> object:
        if isinstance(value, dict):
            return {name: encode(entry) for name, entry in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        key, _ = storages.setdefault(id(owner), (str(len(storages)), owner))
        return make_tensor_opcodes(
            storage=STORAGES[value.dtype.name],
            key=key,
            numel=owner.nbytes // value.itemsize,
            offset=(value.ctypes.data - owner.ctypes.data) // value.itemsize,
            shape=value.shape,
            strides=tuple(stride // value.itemsize for stride in value.strides),
        )

    files = {"data.pkl": b"\x80\x02" + opcodes(encode(content)) + b"."}
    files |= {"byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": owner.tobytes("A") for key, owner in storages.values()}
    files |= entries or {}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return Path(path)


@pytest.fixture
def write_torch_zip():
    return write


@pytest.fixture
def tensor_opcodes():
    return make_tensor_opcodes
