"""Where the models of sampling come from: training runs, flat files and folders alike."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from fd_jax import assets
from fd_jax.architecture import Architecture, CLIPVisionConfig
from fd_jax.checkpoints.diffusers import load_folder, read_configs
from fd_jax.checkpoints.flat_file import SDM_PARTS, TDM_PARTS, load_released
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.run.model_json import RunModel, is_run, read_model
from fd_jax.config import differences, to_json
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params


class Sources(NamedTuple):
    """Paths of checkpoints.

    Attributes:
        sdm: Folder of a training run, or a flat file or the folder it is in.
        tdm: The same.
        base: Stable Diffusion 1.x as diffusers stores it. Needed unless the SDM is a run.
        image_encoder: A CLIP as transformers stores it. Needed unless the SDM is a run.
    """

    sdm: str | os.PathLike
    tdm: str | os.PathLike
    base: str | os.PathLike | None = None
    image_encoder: str | os.PathLike | None = None


def bundle_sources(folder: str | os.PathLike) -> Sources:
    """Returns the paths in a folder that `fd_jax.checkpoints.bundle` writes."""
    folder = Path(folder)
    files = folder / "sdm.safetensors", folder / "tdm.safetensors"
    return Sources(*files, folder / "base", folder / "clip")


def find_sources(
    sdm: str | os.PathLike | None,
    tdm: str | os.PathLike | None,
    base: str | os.PathLike | None,
    image_encoder: str | os.PathLike | None,
) -> Sources:
    """Returns the sources that were given, or where none was, those of the bundled models.

    Raises:
        InputError: The SDM or the TDM is missing while another source was given.
    """
    given = {"sdm": sdm, "tdm": tdm, "base": base, "image_encoder": image_encoder}
    given = {name: path for name, path in given.items() if path is not None}
    if not given:
        return bundle_sources(assets.DEMO)
    if missing := [name for name in ("sdm", "tdm") if name not in given]:
        found = ", ".join(f"{name} {path}" for name, path in given.items())
        raise CheckpointError(
            f"given is {found}, but no {' and no '.join(missing)}: expected both models, or "
            "nothing at all for those of the package"
        )
    return Sources(**given)


def read_sizes(sources: Sources) -> tuple[Architecture, ScheduleConfig]:
    """Returns the sizes of all networks and the noise schedule, on which all sources agree.

    Flat files say nothing of a schedule: if there is a base, theirs is that of the base.

    Raises:
        InputError: A source is missing, of the wrong kind, or of another architecture.
    """
    sdm, tdm = _read_run(sources.sdm, "sdm"), _read_run(sources.tdm, "tdm")
    base = None
    if sources.base is not None:
        base = read_configs(sources.base, sources.image_encoder)
    if sdm is not None:
        configs, schedule = sdm.configs, sdm.schedule
    elif base is not None and sources.image_encoder is not None:
        configs, schedule = base
    else:
        raise CheckpointError(
            f"base is {sources.base} and image_encoder is {sources.image_encoder}, expected both: "
            f"{sources.sdm} is no folder of a training run, which would do without"
        )
    if base is not None:
        # Its image encoder is a guess, if none was given.
        found, expected = ({**c._asdict(), "image_encoder": None} for c in (base[0], configs))
        check_same(sources.base, found, expected)
        if sdm is None or tdm is None:
            check_same(sources.base, {"scheduler": base[1]}, {"scheduler": schedule})
    if sources.image_encoder is not None:
        path = Path(sources.image_encoder, "config.json")
        vision = CLIPVisionConfig.from_json(read_json(path), str(path))
        check_same(path, vision, configs.image_encoder)
    if tdm is not None:
        found = {"unet": tdm.configs.unet, "scheduler": tdm.schedule}
        check_same(sources.tdm, found, {"unet": configs.unet, "scheduler": schedule})
    return configs, schedule


def _read_run(path: str | os.PathLike, kind: str) -> RunModel | None:
    if not is_run(path):
        return None
    model = read_model(path)
    if model.kind != kind:
        raise CheckpointError(f"{path} trains a {model.kind}, expected a run that trains a {kind}")
    return model


def check_same(where: str | os.PathLike, found: Any, expected: Any) -> None:
    """Raises CheckpointError if configs, by part or alone, are not those of the SDM."""
    changed = [
        f"{name} is {new!r}, expected {old!r}"
        for name, (old, new) in differences(to_json(expected), to_json(found)).items()
        # The size that a model was trained at changes none of its parameters.
        if not name.endswith("sample_size")
    ]
    if changed:
        raise CheckpointError(f"{where} does not fit the SDM: {', '.join(changed)}")


def load_models(
    sources: Sources, abstract: dict[str, Params], placement: Placement
) -> tuple[dict[str, Params], Params, Params, list[str]]:
    """Reads the parameters: of runs the averages, if they keep them.

    Args:
        sources: Where to read.
        abstract: Shapes of all parts.
        placement: Where the parameters are to live.

    Returns:
        The parts of the SDM, the UNet of the TDM, the VAE, and the names of tensors left behind.

    Raises:
        CheckpointError: A source is missing, damaged, or of another model.
    """
    wanted = ["text_encoder", "image_encoder", "subject_fusion", "unet"]
    if sources.base is None:
        wanted.append("vae")
    if is_run(sources.sdm):
        read = read_params(sources.sdm, placement=placement, wanted=wanted, abstract=abstract)
        persons, left = read, []
    else:
        persons, left = load_released(sources.sdm, SDM_PARTS, abstract, placement, wanted=wanted)
    if is_run(sources.tdm):
        scenes = read_params(sources.tdm, placement=placement, wanted=["unet"], abstract=abstract)
    else:
        scenes, more = load_released(sources.tdm, TDM_PARTS, abstract, placement, wanted=["unet"])
        left = left + more
    if sources.base is None:
        return persons, scenes["unet"], persons.pop("vae"), left
    vae, more = load_folder("vae", Path(sources.base, "vae"), abstract["vae"], placement)
    return persons, scenes["unet"], vae, left + more
