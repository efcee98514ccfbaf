"""Checkpoints of the pipeline: SDM, TDM, base and image encoder, opened and loaded together."""

import dataclasses
import os
from collections.abc import Mapping
from typing import NamedTuple

from fd_jax import assets
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.weights import Weights, open_weights
from fd_jax.errors import CheckpointError
from fd_jax.types import Params

# Networks that only an SDM has.
_SUBJECT = ("image_encoder", "subject_fusion")

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


def load_models(
    sources: Sources, abstract: Mapping[str, Params], placement: Placement
) -> tuple[dict[str, Params], dict[str, Params], list[str]]:
    """Loads the parameters: those of a training run are its EMA parameters, if it keeps them.

    Args:
        sources: Checkpoints.
        abstract: Shapes of all networks.
        placement: Dtype and sharding of the parameters.

    Returns:
        Networks of the SDM with the VAE, the UNet of the TDM, and the names of ignored tensors.

    Raises:
        CheckpointError: A checkpoint is damaged, or of another model.
    """
    own = ["text_encoder", "image_encoder", "subject_fusion", "unet"]
    vae = sources.sdm if sources.base is None else sources.base
    loaded = [
        sources.sdm.load(own, placement, abstract),
        sources.tdm.load(
            ["unet"], placement, {k: v for k, v in abstract.items() if k not in _SUBJECT}
        ),
        vae.load(["vae"], placement, abstract),
    ]
    ignored = [name for part in loaded for name in part.ignored_tensors]
    return loaded[0].params | loaded[2].params, loaded[1].params, ignored
