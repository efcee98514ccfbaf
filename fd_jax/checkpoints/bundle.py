"""Writes what sampling needs of two training runs, once and small, into one folder.

    python -m fd_jax.checkpoints.bundle SDM_RUN TDM_RUN OUT

The averaged parameters of an SDM and of the TDM that it began as, which share text encoder and VAE:

    OUT/sdm.safetensors   UNet, text encoder, image encoder and subject fusion, named as released
    OUT/tdm.safetensors   UNet
    OUT/base              VAE, and the configs of a Stable Diffusion of diffusers
    OUT/clip              config of the image encoder

`FaceDiffuser.from_pretrained` reads them as sdm, tdm, base and image_encoder. The tokenizer is
CLIP's own, which the package holds. OUT/README.md and OUT/prompts.jsonl stay as they are.
"""

import argparse
import os
import sys
from pathlib import Path

import jax
import numpy as np

from fd_jax.architecture import Architecture
from fd_jax.checkpoints.diffusers import write_folder
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.flat_file import SDM_PARTS, TDM_PARTS, write_released
from fd_jax.checkpoints.run.model_json import is_run, read_model
from fd_jax.checkpoints.sources import Sources, bundle_sources, check_same, read_sizes
from fd_jax.checkpoints.writing import (
    DTYPES,
    cast,
    named_dtype,
    read_float32,
)
from fd_jax.errors import CheckpointError, InputError
from fd_jax.files import atomic_folder, check_replaceable, write_json
from fd_jax.params import flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params

_SHARED = ("text_encoder", "vae")
_WRITTEN = {path.name for path in bundle_sources("")}
_KEPT = ("README.md", "prompts.jsonl")


def bundle(
    sdm: str | os.PathLike,
    tdm: str | os.PathLike,
    out: str | os.PathLike,
    *,
    dtype: str = "float16",
    overwrite: bool = False,
) -> None:
    """Writes the bundle, whole or not at all.

    Args:
        sdm: Folder of the SDM's run.
        tdm: Folder of the TDM's run.
        out: Folder to write.
        dtype: Key of `DTYPES`, of all parameters.
        overwrite: Whether to replace an earlier bundle.

    Raises:
        InputError: A run cannot be read or is of the other kind, the two are of different
            architectures or schedules, or do not share text encoder and VAE; or the folder cannot
            be written.
    """
    out = Path(out).absolute()
    kind = named_dtype(dtype)
    check_replaceable(out, _WRITTEN, overwrite=overwrite, kept=_KEPT)
    for run in (sdm, tdm):
        if not is_run(run):
            raise CheckpointError(f"{run} is no folder of a training run, expected one")
    configs, schedule = read_sizes(Sources(sdm, tdm))
    scenes_configs = read_model(tdm).configs
    found, expected = (
        {part: getattr(each, part) for part in _SHARED} for each in (scenes_configs, configs)
    )
    check_same(tdm, found, expected)

    persons, scenes = read_float32(sdm), read_float32(tdm)
    _check_shared(sdm, tdm, persons, scenes)
    persons = {part: cast(params, kind, part) for part, params in persons.items()}
    scenes_unet = {"unet": cast(scenes["unet"], kind, "unet")}
    with (
        file_errors(f"{out}: cannot write the folder"),
        atomic_folder(out, kept=_KEPT) as new,
    ):
        places = bundle_sources(new)
        _write_configs(places, configs, schedule)
        write_folder("vae", places.base / "vae", persons["vae"], configs.vae.to_json())
        parts = {name: part for name, part in SDM_PARTS.items() if name != "vae"}
        write_released(places.sdm, parts, persons)
        write_released(places.tdm, {"unet": TDM_PARTS["unet"]}, scenes_unet)


def _check_shared(
    sdm: str | os.PathLike,
    tdm: str | os.PathLike,
    persons: dict[str, Params],
    scenes: dict[str, Params],
) -> None:
    for part in _SHARED:
        leaves, expected = flat({part: scenes[part]}), flat({part: persons[part]})
        changed = [
            name
            for name in sorted(leaves.keys() | expected.keys())
            if not np.array_equal(leaves.get(name), expected.get(name))
        ]
        if changed:
            raise CheckpointError(
                f"{tdm} and {sdm} do not share their {part}: {abbreviate(changed, 3)} differ, "
                "expected equal parameters, as of an SDM that began as this TDM and left them alone"
            )


def _write_configs(places: Sources, configs: Architecture, schedule: ScheduleConfig) -> None:
    """Writes the sizes of what lies in the flat files, and the schedule."""
    base = Path(places.base)
    for part in ("unet", "text_encoder"):
        write_json(base / part / "config.json", getattr(configs, part).to_json())
    write_json(base / "scheduler" / "scheduler_config.json", schedule.to_json())
    write_json(Path(places.image_encoder, "config.json"), configs.image_encoder.to_json())


def main() -> None:
    """Writes the bundle that the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("sdm", metavar="SDM_RUN", help="folder of the SDM's training run")
    parser.add_argument("tdm", metavar="TDM_RUN", help="folder of the TDM's training run")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier bundle")
    arguments = parser.parse_args()
    # Nothing is computed, and an accelerator may be busy with the training itself.
    jax.config.update("jax_platforms", "cpu")
    try:
        bundle(
            *(arguments.sdm, arguments.tdm, arguments.out),
            dtype=arguments.dtype,
            overwrite=arguments.overwrite,
        )
    except InputError as error:
        sys.exit(f"error: {error}")
    size = sum(path.stat().st_size for path in Path(arguments.out).rglob("*") if path.is_file())
    print(f"wrote {arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
