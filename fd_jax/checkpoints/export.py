"""Writes the model of a training run in the formats of PyTorch, diffusers and transformers.

OUT/pytorch_model.bin (or OUT/model.safetensors) is a flat file as the released training saves it,
for the released code and for `--sdm OUT` of the sampler. OUT/diffusers is a Stable Diffusion for
diffusers. OUT/clip is an SDM's image encoder for transformers. With --single-file,
OUT/stable_diffusion.safetensors holds UNet, VAE and text encoder in LDM's names, for programs that
take such files. A run that trains a single network
is exported to OUT/vae, for diffusers, or to OUT/clip alone.
"""

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import jax
import ml_dtypes
import numpy as np
import tyro

from fd_jax import cli
from fd_jax.checkpoints.diffusers import write_folder, write_stable_diffusion
from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.flat_file import flat_tensors, position_ids
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.single_file import write_single_file
from fd_jax.checkpoints.torch.files import write_safetensors
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.weights import Weights, open_weights
from fd_jax.errors import CheckpointError
from fd_jax.files import atomic_folder, check_replaceable, local_path
from fd_jax.params import flat, nested
from fd_jax.types import Params

Format = Literal["bin", "safetensors"]
DtypeName = Literal["float32", "float16", "bfloat16"]
_FLAT = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}
_SINGLE = "stable_diffusion.safetensors"
_WRITTEN = {*_FLAT.values(), _SINGLE, "diffusers", "clip", "vae"}


def export(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    ema: bool = True,
    step: int | None = None,
    dtype: str = "float32",
    flat_format: str = "bin",
    single_file: bool = False,
    overwrite: bool = False,
) -> None:
    """Exports the model of a run, all files or none.

    Args:
        run: Folder of the run.
        out: Folder to write.
        ema: Whether to export EMA parameters, if the run keeps them.
        step: Step of the checkpoint; by default the newest.
        dtype: Dtype of all parameters: float32, float16 or bfloat16.
        flat_format: Format of the flat file: `bin` for PyTorch, or `safetensors`.
        single_file: Whether to write a single file in LDM's names too.
        overwrite: Whether to replace an earlier export.

    Raises:
        InputError: The run cannot be read, or the folder not written.
    """
    out = local_path(out).absolute()
    numpy_dtype = named_dtype(dtype)
    if flat_format not in get_args(Format):
        raise CheckpointError(f"format is {flat_format!r}, expected one of {get_args(Format)}")
    check_replaceable(out, _WRITTEN, overwrite=overwrite)
    model = open_run(run, ema=ema, step=step)
    params = load_float32(model)
    params = {part: cast(params[part], numpy_dtype, part) for part in params}
    with file_errors(f"{out}: cannot write the folder"), atomic_folder(out) as new:
        if "unet" in params:
            _write_flat_file(new / _FLAT[flat_format], model, params, flat_format)
            schedule: Any = model.schedule  # every run has one
            write_stable_diffusion(new / "diffusers", params, model.architecture, schedule)
            if single_file:
                write_single_file(new / _SINGLE, params)
        elif "vae" in params:
            write_folder("vae", new / "vae", params["vae"], model.architecture["vae"])
        if "image_encoder" in params:
            clip = params["image_encoder"], model.architecture["image_encoder"]
            write_folder("image_encoder", new / "clip", *clip)


def open_run(
    run: str | os.PathLike, *, task: str | None = None, ema: bool = True, step: int | None = None
) -> Weights:
    """Opens the folder of a training run, see `open_weights`; refuses any other checkpoint."""
    opened = open_weights(run, task=task, ema=ema, step=step)
    if opened.task is None:
        raise CheckpointError(f"{run} is no folder of a training run, expected one")
    return opened


def load_float32(run: Weights) -> dict[str, Params]:
    """Loads all networks of a run onto one device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placement = Placement(np.float32, lambda path, shape: device)
    return run.load(run.parts, placement).params


def named_dtype(name: str) -> np.dtype:
    """Returns the NumPy dtype of a name. Raises CheckpointError."""
    if name not in get_args(DtypeName):
        raise CheckpointError(f"dtype is {name!r}, expected one of {get_args(DtypeName)}")
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def cast(params: Params, dtype: np.dtype, part: str) -> Params:
    """Returns the parameters of a network in another dtype.

    Raises:
        CheckpointError: A value is not finite in that dtype.
    """
    leaves = {}
    for path, leaf in flat(params).items():
        with np.errstate(over="ignore"):
            leaves[path] = np.asarray(leaf).astype(dtype)
        if not np.isfinite(leaves[path]).all():
            raise CheckpointError(f"{part}/{path} has values that are not finite in {dtype}")
    return nested(leaves)


def _write_flat_file(
    path: Path, model: Weights, params: Mapping[str, Params], flat_format: str
) -> None:
    tensors = chain(flat_tensors(params), position_ids(model.architecture))
    if flat_format == "bin":
        write_torch(path, tensors)
    else:
        write_safetensors(path, dict(tensors), {"format": "pt"})


def _command(
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    /,
    raw: bool = False,
    step: int | None = None,
    dtype: DtypeName = "float32",
    format: Format = "bin",
    single_file: bool = False,
    overwrite: bool = False,
) -> None:
    """Exports a run.

    Args:
        run: Folder of a training run.
        out: Folder to write.
        raw: Export the raw parameters instead of the EMA parameters.
        step: Step of the checkpoint (default: the newest).
        dtype: Dtype of all parameters.
        format: Format of the flat file.
        single_file: Write stable_diffusion.safetensors in LDM's names too.
        overwrite: Replace an earlier export.
    """
    # Nothing is computed, and an accelerator may be busy with the training itself.
    jax.config.update("jax_platforms", "cpu")
    options = {"ema": not raw, "step": step, "dtype": dtype, "overwrite": overwrite}
    export(run, out, flat_format=format, single_file=single_file, **options)
    print(f"wrote {out}")


def main() -> None:
    """Runs the command line of `fd-export`."""
    cli.run(_command, description=__doc__, prog="fd-export")


if __name__ == "__main__":
    main()
