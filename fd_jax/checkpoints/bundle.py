"""Writes what sampling needs of two training runs, in half precision, into one folder.

    python -m fd_jax.checkpoints.bundle SDM_RUN TDM_RUN OUT

The EMA parameters of an SDM and of a TDM, which share text encoder and VAE:

    OUT/sdm.safetensors   UNet, text encoder, image encoder and subject fusion, named as released
    OUT/tdm.safetensors   UNet
    OUT/base              VAE, and the configs of a Stable Diffusion of diffusers
    OUT/clip              config of the image encoder
    OUT/checksums.json    of all these files, compared when they are read

`open_weights(OUT)` reads it. The tokenizer is CLIP's own, which the package holds. README.md and
the prompt files of OUT stay as they are.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from fd_jax import cli
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.diffusers import write_config, write_folder, write_schedule
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.export import DtypeName, cast, load_float32, named_dtype, open_run
from fd_jax.checkpoints.file_checksums import CHECKSUMS_FILE, write_checksums
from fd_jax.checkpoints.flat_file import write_flat_file
from fd_jax.checkpoints.merge import merge
from fd_jax.checkpoints.weights import BUNDLED
from fd_jax.errors import CheckpointError
from fd_jax.files import atomic_folder, check_replaceable, local_path
from fd_jax.params import flat
from fd_jax.types import Params

_SHARED = ("text_encoder", "vae")
_WRITTEN = {*BUNDLED.values(), "base", "clip", CHECKSUMS_FILE}
_KEPT = ("README.md", "prompts.jsonl", "unseen.jsonl")


def bundle(
    sdm: str | os.PathLike,
    tdm: str | os.PathLike,
    out: str | os.PathLike,
    *,
    dtype: str = "float16",
    overwrite: bool = False,
) -> None:
    """Bundles two runs, all files or none.

    Args:
        sdm: Folder of the SDM's run.
        tdm: Folder of the TDM's run.
        out: Folder to write.
        dtype: Dtype of all parameters.
        overwrite: Whether to replace an earlier bundle.

    Raises:
        InputError: A run cannot be read or is of another task, the two differ in architecture or
            schedule, or do not share text encoder and VAE; or the folder cannot be written.
    """
    out = local_path(out).absolute()
    numpy_dtype = named_dtype(dtype)
    check_replaceable(out, _WRITTEN, overwrite=overwrite, kept=_KEPT)
    runs = open_run(sdm, task="sdm"), open_run(tdm, task="tdm")
    architecture, schedule = merge(runs, needed=Architecture._fields)

    sdm_params, tdm_params = (load_float32(run) for run in runs)
    _check_shared(sdm, tdm, sdm_params, tdm_params)
    sdm_params = {part: cast(params, numpy_dtype, part) for part, params in sdm_params.items()}
    vae = sdm_params.pop("vae")
    tdm_unet = cast(tdm_params["unet"], numpy_dtype, "unet")
    with (
        file_errors(f"{out}: cannot write the folder"),
        atomic_folder(out, kept=_KEPT) as new,
    ):
        base = new / "base"
        for part in ("unet", "text_encoder"):
            write_config(part, base / part, getattr(architecture, part))
        write_schedule(base / "scheduler", schedule)
        write_config("image_encoder", new / "clip", architecture.image_encoder)
        write_folder("vae", base / "vae", vae, architecture.vae)
        write_flat_file(new / BUNDLED["sdm"], sdm_params)
        write_flat_file(new / BUNDLED["tdm"], {"unet": tdm_unet})
        write_checksums(new)


def _check_shared(
    sdm: str | os.PathLike,
    tdm: str | os.PathLike,
    sdm_params: Mapping[str, Params],
    tdm_params: Mapping[str, Params],
) -> None:
    for part in _SHARED:
        leaves: dict[str, Any] = flat({part: tdm_params[part]})
        expected: dict[str, Any] = flat({part: sdm_params[part]})
        changed = [
            name
            for name in sorted(leaves.keys() | expected.keys())
            if name not in leaves
            or name not in expected
            or not np.array_equal(leaves[name], expected[name])
        ]
        if changed:
            raise CheckpointError(
                f"{tdm} and {sdm} do not share their {part}: {abbreviate(changed, 3)} differ, "
                "expected an SDM that was initialized from this TDM and left them frozen"
            )


def _command(
    sdm: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SDM_RUN")],
    tdm: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TDM_RUN")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    /,
    dtype: DtypeName = "float16",
    overwrite: bool = False,
) -> None:
    """Bundles two runs.

    Args:
        sdm: Folder of the SDM's training run.
        tdm: Folder of the TDM's training run.
        out: Folder to write.
        dtype: Dtype of all parameters.
        overwrite: Replace an earlier bundle.
    """
    # Nothing is computed, and an accelerator may be busy with the training itself.
    jax.config.update("jax_platforms", "cpu")
    bundle(sdm, tdm, out, dtype=dtype, overwrite=overwrite)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out}: {size / 1e6:.1f} MB")


def main() -> None:
    """Runs the command line."""
    cli.run(_command, description=__doc__)


if __name__ == "__main__":
    main()
