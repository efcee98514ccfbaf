"""Writes the model of a training run in the formats of PyTorch, diffusers and transformers.

    python -m fd_jax.checkpoints.export RUN OUT

OUT/pytorch_model.bin (or OUT/model.safetensors) is a flat file as the released training saves it,
for the released code and for `sample.py --sdm OUT`; OUT/diffusers a Stable Diffusion that diffusers
reads, and OUT/clip, of an SDM, the image encoder for transformers. Of a run that trained a part
alone there is nothing but OUT/vae, for diffusers, or OUT/clip.
"""

import argparse
import os
import sys
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import jax

from fd_jax.checkpoints.diffusers import write_folder, write_stable_diffusion
from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.flat_file import SDM_PARTS, TDM_PARTS, position_ids, released_tensors
from fd_jax.checkpoints.run.model_json import ALONE, RunModel, read_model
from fd_jax.checkpoints.torch.files import write_safetensors
from fd_jax.checkpoints.torch.writer import write_torch
from fd_jax.checkpoints.writing import (
    DTYPES,
    cast,
    named_dtype,
    read_float32,
)
from fd_jax.errors import CheckpointError, InputError
from fd_jax.files import atomic_folder, check_replaceable
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
    kind = named_dtype(dtype)
    if flat_format not in get_args(Format):
        raise CheckpointError(f"format is {flat_format!r}, expected one of {get_args(Format)}")
    check_replaceable(out, _WRITTEN, overwrite=overwrite)
    model = read_model(run)
    params = read_float32(run, ema=ema, step=step)
    params = {part: cast(leaves, kind, part) for part, leaves in params.items()}
    with file_errors(f"{out}: cannot write the folder"), atomic_folder(out) as new:
        if model.kind not in ALONE:
            _write_whole(new, model, params, flat_format)
        for part, name in (("vae", "vae"), ("image_encoder", "clip")):
            if ALONE.get(model.kind) == part or (model.kind == "sdm" and name == "clip"):
                config = getattr(model.configs, part).to_json()
                write_folder(part, new / name, params[part], config)


def _write_whole(
    new: Path, model: RunModel, params: dict[str, Params], flat_format: Format | str
) -> None:
    """Writes a TDM or an SDM: the flat file, and the folder of diffusers."""
    parts = SDM_PARTS if model.kind == "sdm" else TDM_PARTS
    path = new / _FLAT[flat_format]
    tensors = chain(released_tensors(parts, params), position_ids(parts, model.configs))
    if flat_format == "bin":
        write_torch(path, tensors)
    else:
        write_safetensors(path, dict(tensors), {"format": "pt"})
    write_stable_diffusion(new / "diffusers", params, model.configs, model.schedule)


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
