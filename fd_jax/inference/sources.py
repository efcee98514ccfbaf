"""Checkpoints of the pipeline: SDM, TDM, base and image encoder, opened and loaded together."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from jax.sharding import Mesh
from tqdm import tqdm

from fd_jax import assets, sharding
from fd_jax.checkpoints.lora import Lora, open_lora, parse_lora, with_loras
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.weights import Weights, open_weights
from fd_jax.errors import CheckpointError, InputError
from fd_jax.inference.compiled import ModelParams
from fd_jax.networks import Networks

# Networks that only an SDM has.
_SUBJECT = ("image_encoder", "subject_fusion")

LoraOn = Literal["tdm", "sdm", "both"]
_Path = str | os.PathLike | None


def check_sources(sdm: _Path, tdm: _Path, base: _Path, image_encoder: _Path) -> None:
    """Raises CheckpointError if one model is given without the other."""
    given = {"sdm": sdm, "tdm": tdm, "base": base, "image_encoder": image_encoder}
    given = {name: path for name, path in given.items() if path is not None}
    missing = [name for name in ("sdm", "tdm") if name not in given]
    if given and missing:
        found = ", ".join(f"{name} {path}" for name, path in given.items())
        raise CheckpointError(
            f"given is {found}, but no {' and no '.join(missing)}: pass both models, or none of "
            "these to use the bundled models"
        )


class Sources(NamedTuple):
    """Opened checkpoints, in the order in which their configs count."""

    sdm: Weights
    base: Weights | None
    image_encoder: Weights | None
    tdm: Weights

    def given(self) -> list[Weights]:
        """Returns the checkpoints that there are; of each config the first counts."""
        return [source for source in self if source is not None]


def open_sources(sdm: _Path, tdm: _Path, base: _Path, image_encoder: _Path) -> Sources:
    """Opens the checkpoints of both models; without any, the bundled models.

    Raises:
        InputError: A checkpoint is missing, damaged, or of another kind.
    """
    check_sources(sdm, tdm, base, image_encoder)
    opened = Sources(
        sdm=open_weights(assets.DEMO if sdm is None else sdm, task="sdm"),
        base=None if base is None else open_weights(base),
        image_encoder=None if image_encoder is None else open_weights(image_encoder),
        tdm=open_weights(assets.DEMO if tdm is None else tdm, task="tdm"),
    )
    if not opened.sdm.architecture and (base is None or image_encoder is None):
        raise CheckpointError(
            f"base is {base} and image_encoder is {image_encoder}, expected both: {sdm} holds no "
            "configs, as the folder of a training run would"
        )
    if (
        opened.base is not None
        and opened.sdm.schedule is not None
        and opened.tdm.schedule is not None
    ):
        # The scheduler of a base counts only for models that bring none.
        opened = opened._replace(base=dataclasses.replace(opened.base, schedule=None))
    return opened if opened.tdm.task else opened._replace(tdm=_unet_alone(opened))


def _unet_alone(opened: Sources) -> Weights:
    """Returns the UNet of a TDM that may be any Stable Diffusion: the rest of it is not used.

    Where a scheduler begins and ends is a habit of sampling; the noise that the UNet knows counts.
    """
    tdm, others = opened.tdm, opened.given()[:-1]
    if "unet" not in tdm.parts:
        raise CheckpointError(f"{tdm.path} holds {list(tdm.parts)}, expected a TDM with a UNet")
    schedule = next((other.schedule for other in others if other.schedule is not None), None)
    if tdm.schedule is not None and schedule is not None:
        habits = {name: getattr(schedule, name) for name in ("steps_offset", "set_alpha_to_one")}
        schedule = dataclasses.replace(tdm.schedule, **habits)
    else:
        schedule = tdm.schedule
    architecture = {part: c for part, c in tdm.architecture.items() if part == "unet"}
    return dataclasses.replace(tdm, architecture=architecture, schedule=schedule)


def open_loras(loras: Sequence[str | os.PathLike], on: Sequence[LoraOn]) -> list[tuple[Lora, str]]:
    """Opens LoRAs, each FILE or FILE:SCALE, with the models that each changes.

    Args:
        loras: Files or folders.
        on: `tdm`, `sdm` or `both`: one for all LoRAs, or one each.

    Raises:
        InputError: A LoRA cannot be read, or there is not a model for each.
    """
    targets = list(on)
    if len(targets) == 1 or not targets:
        targets = (targets or ["both"]) * len(loras)
    if len(targets) != len(loras):
        raise InputError(
            f"lora_on has {len(targets)} values for {len(loras)} LoRAs, expected one or one each"
        )
    if unknown := [target for target in targets if target not in get_args(LoraOn)]:
        raise InputError(f"lora_on is {unknown[0]!r}, expected one of {get_args(LoraOn)}")
    return [(open_lora(*parse_lora(lora)), on) for lora, on in zip(loras, targets, strict=True)]


def load_models(
    sources: Sources,
    networks: Networks,
    mesh: Mesh,
    *,
    loras: Sequence[tuple[Lora, str]] = (),
    progress: bool = False,
) -> tuple[ModelParams, list[str]]:
    """Loads the parameters, the same on each device.

    Those of a training run are its EMA parameters, if it keeps them.

    Args:
        sources: Checkpoints.
        networks: Networks, whose dtype the parameters get.
        mesh: Devices.
        loras: LoRAs to merge, each with the models that it changes.
        progress: Whether to show a progress bar.

    Returns:
        Parameters of both models, and the names of ignored tensors.

    Raises:
        CheckpointError: A checkpoint is damaged, or of another model.
    """
    abstract = networks.shapes()
    sdm = with_loras(sources.sdm, [lora for lora, on in loras if on != "tdm"], abstract)
    tdm = with_loras(sources.tdm, [lora for lora, on in loras if on != "sdm"], abstract)
    replicated = sharding.replicated(mesh)
    own = ["text_encoder", "image_encoder", "subject_fusion", "unet"]
    with tqdm(desc="reading weights", unit=" tensors", disable=not progress) as bar:
        placement = Placement(networks.dtype, lambda path, shape: replicated, bar.update)
        loaded = [
            sdm.load(own, placement, abstract),
            tdm.load(["unet"], placement, {k: v for k, v in abstract.items() if k not in _SUBJECT}),
            (sources.base or sources.sdm).load(["vae"], placement, abstract),
        ]
    ignored = [name for part in loaded for name in part.ignored_tensors]
    persons, scenes, rest = (part.params for part in loaded)
    shared = {part: persons[part] for part in own if part != "unet"}
    params = ModelParams(**shared, sdm=persons["unet"], tdm=scenes["unet"], vae=rest["vae"])
    return params, ignored
