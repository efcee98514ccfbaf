"""What writers of models share: dtypes to write, and folders that are whole or not there."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.torch.names import flatten, unflatten
from fd_jax.errors import CheckpointError
from fd_jax.types import Params

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def check_out(
    out: Path, written: Collection[str], *, overwrite: bool, kept: Collection[str] = ()
) -> None:
    """Checks, before anything takes long, that a folder may be written.

    Args:
        out: The folder.
        written: Names that may be in it and be replaced.
        overwrite: Whether they may be replaced.
        kept: Names that may be in it and stay, see `whole_folder`.

    Raises:
        CheckpointError: The folder cannot be read, or holds something else.
    """
    with file_errors(f"{out}: cannot be read"):
        held = {path.name for path in out.iterdir()} if out.exists() else set()
    held -= set(kept)
    if held and not overwrite:
        raise CheckpointError(f"{out} is not empty, expected a new folder, or --overwrite")
    if strange := sorted(held - set(written)):
        raise CheckpointError(f"{out} holds {strange}, which are never written: it stays as it is")


@contextlib.contextmanager
def whole_folder(out: Path, *, kept: Collection[str] = ()) -> Iterator[Path]:
    """Gives a new folder to write to, which takes the place of `out` if all goes well.

    Args:
        out: Absolute path; what is there is replaced.
        kept: Names of files that are carried over from what is replaced.

    Raises:
        CheckpointError: A file cannot be written. What was there is as it was.
    """
    with file_errors(f"{out}: cannot write the folder"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            new, old = Path(temporary, "new"), Path(temporary, "old")
            new.mkdir()
            yield new
            for name in kept:
                if (out / name).is_file():
                    shutil.copy2(out / name, new / name)
            if out.exists():
                out.rename(old)
            new.rename(out)


def named_dtype(name: str) -> np.dtype:
    """Returns the dtype of a key of `DTYPES`. Raises CheckpointError."""
    if name not in DTYPES:
        raise CheckpointError(f"dtype is {name!r}, expected one of {tuple(DTYPES)}")
    return DTYPES[name]


def read_float32(
    run: str | os.PathLike, *, ema: bool = True, step: int | None = None
) -> dict[str, Params]:
    """Reads all parameters of a run, by part, onto one device. Options as of `read_params`."""
    where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placement = Placement(np.float32, lambda path, shape: where)
    return read_params(run, placement=placement, ema=ema, step=step)


def cast(params: Params, dtype: np.dtype, part: str) -> Params:
    """Returns the parameters of a part of a model in another dtype.

    Raises:
        CheckpointError: A value is not finite in it.
    """
    leaves = {}
    for path, leaf in flatten(params).items():
        with np.errstate(over="ignore"):
            leaves[path] = np.asarray(leaf).astype(dtype)
        if not np.isfinite(leaves[path]).all():
            name = "/".join(map(str, (part, *path)))
            raise CheckpointError(f"{name} has values that are not finite in {dtype}")
    return unflatten(leaves)
