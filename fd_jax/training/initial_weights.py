"""Parameters and architecture that a run is initialized from."""

import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fd_jax import params, sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.merge import find_parts, merge
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.weights import Weights, open_weights
from fd_jax.errors import InputError
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import InitConfig, ModelConfig

_EXPECTED = "--init.base, a run as --init.checkpoint, or a config with `model`"


def open_sources(init: InitConfig) -> list[Weights]:
    """Opens the checkpoints that training is initialized from, by precedence.

    Raises:
        InputError: A checkpoint cannot be read.
    """
    paths = (init.checkpoint, init.image_encoder, init.base)
    sources = [open_weights(path) for path in paths if path is not None]
    # The scheduler of a base counts only beside a checkpoint that brings none.
    with_schedule = [source for source in sources if source.schedule is not None]
    return [
        dataclasses.replace(source, schedule=None) if source in with_schedule[1:] else source
        for source in sources
    ]


def find_architecture(
    sources: Sequence[Weights], model: ModelConfig | None
) -> tuple[Architecture, ScheduleConfig]:
    """Returns architecture and noise schedule: those of the sources, else those of the config.

    Args:
        sources: Opened checkpoints.
        model: Architecture to train from scratch.

    Raises:
        InputError: There is none, or two of them differ.
    """
    given = list(sources)
    if model is not None:
        architecture = {
            "unet": model.unet,
            "vae": model.vae,
            "text_encoder": model.text_encoder,
            "image_encoder": model.image_encoder,
        }
        given.append(
            Weights(
                Path("`model` of the config"), architecture=architecture, schedule=model.schedule
            )
        )
    if not given:
        raise InputError(f"there is nothing to initialize from, expected {_EXPECTED}")
    return merge(given, expected=_EXPECTED, ignored=("prediction_type",))


def initial_params(
    sources: Sequence[Weights],
    networks: Networks,
    parts: Collection[str],
    mesh: Mesh,
    *,
    seed: int,
    from_scratch: bool,
) -> tuple[Flat, dict[str, str]]:
    """Loads the parameters of parts, or draws them at random; float32, sharded over the mesh.

    Args:
        sources: Opened checkpoints, by precedence.
        networks: Networks.
        parts: Parts to initialize.
        mesh: Devices, over which parameters are sharded by `sharding.PARTITION_RULES`.
        seed: Seed of random parameters.
        from_scratch: Whether parts without a source are random. Subject fusion always may be:
            before Face-diffuser's training there is none.

    Returns:
        Parameters by path, and the origin of each part for messages.

    Raises:
        InputError: A checkpoint cannot be used, or a part has no source.
    """
    found = {part: source for part, source in find_parts(sources).items() if part in parts}
    missing = [part for part in parts if part not in found]
    if not from_scratch and (lost := [part for part in missing if part != "subject_fusion"]):
        raise InputError(
            f"nothing gives the parameters of {lost}: expected --init.base, --init.image-encoder "
            "or --init.checkpoint, or a config with the architecture in `model`, to train from "
            "scratch"
        )
    abstract = networks.shapes()
    fsdp = mesh.shape["fsdp"]

    def sharding_of(path: Sequence[str | int], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, sharding.partition_spec("/".join(map(str, path)), shape, fsdp))

    placement = Placement(jnp.float32, sharding_of)
    loaded = {}
    for source in sources:
        wanted = [part for part, owner in found.items() if owner is source]
        if wanted:
            loaded |= source.load(wanted, placement, abstract).params
    leaves = params.flat(loaded)
    for name, leaf in params.flat({part: abstract[part] for part in missing}).items():
        value = params.initial(name, leaf.shape, seed)
        leaves[name] = sharding.to_mesh(value, sharding_of(name.split("/"), leaf.shape))
    origins = {part: str(source.path) for part, source in found.items()}
    return leaves, origins | dict.fromkeys(missing, "random numbers")
