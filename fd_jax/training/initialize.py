"""What a run begins with: sizes of the networks, and parameters from files or at random."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fd_jax import params, sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.weights import Weights, find_parts, merge, open_weights
from fd_jax.errors import InputError
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import InitConfig, ModelConfig
from fd_jax.types import Params


class Sizes(NamedTuple):
    """All that says what a model computes, but for its parameters."""

    configs: Architecture
    schedule: ScheduleConfig


def open_sources(init: InitConfig) -> list[Weights]:
    """Opens the checkpoints that training is initialized from, the most important first.

    Raises:
        InputError: A checkpoint cannot be read.
    """
    paths = [init.checkpoint, init.image_encoder, init.base]
    sources = [open_weights(path) for path in paths if path is not None]
    # The scheduler of a base counts only beside a checkpoint that brings none.
    schedules = [source for source in sources if source.schedule is not None]
    return [
        dataclasses.replace(source, schedule=None) if source in schedules[1:] else source
        for source in sources
    ]


def read_sizes(init: InitConfig, model: ModelConfig | None) -> Sizes:
    """Returns architecture and noise schedule, of the checkpoints or of the config's `model`.

    Raises:
        InputError: There are none, they differ, or a checkpoint cannot be read.
    """
    sources = open_sources(init)
    if model is not None:
        configs = Architecture(model.unet, model.vae, model.text_encoder, model.image_encoder)
        name = Path("`model` of the config")
        sources.append(Weights(name, architecture=configs._asdict(), schedule=model.schedule))
    expected = "--init.base, a run as --init.checkpoint, or a config with `model`"
    return Sizes(*merge(sources, expected=expected, ignored=("prediction_type",)))


def given(init: InitConfig) -> dict[str, Path]:
    """Returns the path of the checkpoint that each network is initialized from.

    Raises:
        InputError: A checkpoint cannot be read.
    """
    return {part: source.path for part, source in find_parts(open_sources(init)).items()}


def initial_params(
    init: InitConfig,
    networks: Networks,
    parts: Collection[str],
    mesh: Mesh,
    *,
    seed: int,
    from_scratch: bool,
) -> tuple[Flat, dict[str, str]]:
    """Returns float32 parameters on the mesh by path, and where each part came from.

    Args:
        init: What to begin with.
        networks: The networks.
        parts: Of the model.
        mesh: Devices, over which parameters are divided by the table.
        seed: Of what begins at random.
        from_scratch: Whether parts that nothing gives may begin at random. The subject fusion
            always may: before Face-diffuser's training there is none.

    Raises:
        InputError: A checkpoint cannot be used, or a part is given by none.
    """
    abstract = {
        part: getattr(networks, part).abstract for part in (*Architecture._fields, "subject_fusion")
    }
    fsdp = mesh.shape["fsdp"]

    def where(path: Sequence[str | int], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, sharding.partition_spec("/".join(map(str, path)), shape, fsdp))

    placement = Placement(jnp.float32, where)
    sources = find_parts(open_sources(init))
    origin = {part: source for part, source in sources.items() if part in parts}
    missing = [part for part in parts if part not in origin]
    if not from_scratch and (lost := [part for part in missing if part != "subject_fusion"]):
        raise InputError(
            f"nothing gives the parameters of {lost}: expected --init.base, --init.image-encoder "
            "or --init.checkpoint, or a config with sizes in `model`, to train from scratch"
        )
    found: dict[str, Params] = {}
    for source in dict.fromkeys(origin.values()):
        wanted = [part for part in origin if origin[part] is source]
        found |= source.load(wanted, placement, abstract).params
    leaves = params.flat(found)
    for name, leaf in params.flat({part: abstract[part] for part in missing}).items():
        value = params.initial(name, leaf.shape, seed)
        leaves[name] = sharding.to_mesh(value, where(name.split("/"), leaf.shape))
    origins = {part: str(source.path) for part, source in origin.items()}
    origins |= dict.fromkeys(missing, "random numbers")
    return leaves, origins
