"""Writes the model of a training run in the formats of PyTorch, diffusers and transformers.

    python -m fd_jax.checkpoints.export RUN OUT

OUT/pytorch_model.bin (or OUT/model.safetensors) is a flat file as the released training saves it,
for the released code and for `sample.py --sdm OUT`; OUT/diffusers a Stable Diffusion that diffusers
reads, and OUT/clip, of an SDM, the image encoder for transformers. Of a run that trained the
autoencoder alone there is nothing but OUT/vae, for diffusers.
"""

import argparse
import os
import sys
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import jax

from fd_jax.checkpoints import store
from fd_jax.checkpoints.folders import write_folder, write_stable_diffusion
from fd_jax.checkpoints.lazy_tensor import CheckpointError
from fd_jax.checkpoints.released import SDM_PARTS, TDM_PARTS, position_ids, released_tensors
from fd_jax.checkpoints.run_model import RunModel, read_model
from fd_jax.checkpoints.torch_files import write_safetensors
from fd_jax.checkpoints.torch_writer import write_torch
from fd_jax.checkpoints.writing import DTYPES, cast, check_out, whole_folder
from fd_jax.errors import InputError
from fd_jax.types import Params

Format = Literal["bin", "safetensors"]
_FLAT = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}
_WRITTEN = {*_FLAT.values(), "diffusers", "clip", "vae"}


def export(
    run: str | os.PathLike,
    out: str | os.PathLike,
    *,
    ema: bool = True,
    step: int | None = None,
    dtype: str = "float32",
    flat_format: Format | str = "bin",
    overwrite: bool = False,
) -> None:
    """Writes the model of a run, whole or not at all.

    Args:
        run: Folder of the run.
        out: Folder to write.
        ema: Whether to write averaged parameters, if the run keeps them.
        step: Of which checkpoint; by default the newest.
        dtype: Key of `DTYPES`, of all parameters.
        flat_format: Of the flat file, if there is one: `bin` for PyTorch, or `safetensors`.
        overwrite: Whether to replace an earlier export.

    Raises:
        InputError: The run cannot be read, or the folder not written.
    """
    out = Path(out).absolute()
    for name, value, known in (
        ("dtype", dtype, tuple(DTYPES)),
        ("format", flat_format, get_args(Format)),
    ):
        if value not in known:
            raise CheckpointError(f"{name} is {value!r}, expected one of {known}")
    check_out(out, _WRITTEN, overwrite=overwrite)
    model, params = read_run(run, ema=ema, step=step, dtype=dtype)
    with whole_folder(out) as new:
        if model.kind == "vae":
            write_folder("vae", new / "vae", params["vae"], model.configs.vae.to_json())
        else:
            _write_whole(new, model, params, flat_format)


def _write_whole(
    new: Path, model: RunModel, params: dict[str, Params], flat_format: Format | str
) -> None:
    """Writes a TDM or an SDM: the flat file, and the folders."""
    parts = SDM_PARTS if model.kind == "sdm" else TDM_PARTS
    path = new / _FLAT[flat_format]
    tensors = chain(released_tensors(parts, params), position_ids(parts, model.configs))
    if flat_format == "bin":
        write_torch(path, tensors)
    else:
        write_safetensors(path, dict(tensors), {"format": "pt"})
    write_stable_diffusion(new / "diffusers", params, model.configs, model.schedule)
    if model.kind == "sdm":
        config = model.configs.image_encoder.to_json()
        write_folder("image_encoder", new / "clip", params["image_encoder"], config)


def main() -> None:
    """Exports what the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("run", metavar="RUN", help="folder of a training run")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--raw", action="store_true", help="not the averaged parameters")
    parser.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--format", choices=_FLAT, default="bin", help="of the flat file")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    arguments = parser.parse_args()
    # Nothing is computed, and an accelerator may be busy with the training itself.
    jax.config.update("jax_platforms", "cpu")
    try:
        export(
            arguments.run,
            arguments.out,
            ema=not arguments.raw,
            step=arguments.step,
            dtype=arguments.dtype,
            flat_format=arguments.format,
            overwrite=arguments.overwrite,
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
