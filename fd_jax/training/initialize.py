"""What a run begins with: sizes of the networks, and parameters from files or at random."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from fd_jax import params, sharding
from fd_jax.architecture import Architecture, CLIPVisionConfig
from fd_jax.checkpoints.diffusers import load_folder, read_configs
from fd_jax.checkpoints.flat_file import SDM_PARTS, load_released, parts_in
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run import manager
from fd_jax.checkpoints.run.model_json import ALONE, is_run, read_model
from fd_jax.config import differences, to_json
from fd_jax.errors import InputError
from fd_jax.files import read_json
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import InitConfig, ModelConfig
from fd_jax.training.objective import PARTS
from fd_jax.types import Params


class Sizes(NamedTuple):
    """All that says what a model computes, but for its parameters."""

    configs: Architecture
    schedule: ScheduleConfig


def read_sizes(init: InitConfig, model: ModelConfig | None) -> Sizes:
    """Returns the sizes of the networks: of what training begins with, or the settings' own.

    Raises:
        InputError: There are none, they differ, or a checkpoint cannot be read.
    """
    own = None
    if model is not None:
        configs = Architecture(model.unet, model.vae, model.text_encoder, model.image_encoder)
        own = Sizes(configs, model.schedule)
    found, where = own, None
    if init.checkpoint is not None and is_run(init.checkpoint):
        where = init.checkpoint
        stored = read_model(init.checkpoint)
        configs, schedule = stored.configs, stored.schedule
        if (part := ALONE.get(stored.kind)) is not None:  # it has nothing else
            if own is None:
                raise InputError(
                    f"{where} trains a part, {part}, and gives no sizes of the other networks: "
                    "expected a config with sizes in `model`"
                )
            configs = own.configs._replace(**{part: getattr(configs, part)})
            schedule = own.schedule
        elif stored.kind == "tdm":  # which has no image encoder
            if init.image_encoder is not None:
                path = init.image_encoder / "config.json"
                vision = CLIPVisionConfig.from_json(read_json(path), str(path))
                configs = configs._replace(image_encoder=vision)
            elif own is not None:
                configs = configs._replace(image_encoder=own.configs.image_encoder)
        found = Sizes(configs, schedule)
    elif init.base is not None:
        where = init.base
        found = Sizes(*read_configs(init.base, init.image_encoder))
    if found is None:
        raise InputError(
            "expected --init.base, a run as --init.checkpoint, or a config with sizes in `model`"
        )
    if own is not None and where is not None and (changed := _differences(own, found)):
        lines = [f"  {name}: {old!r} in model, {new!r} there" for name, old, new in changed]
        raise InputError("\n".join([f"{where} is of another architecture than model:", *lines]))
    found.configs.check()
    return found


def _differences(own: Sizes, found: Sizes) -> list[tuple]:
    pairs = differences(to_json(own), to_json(found))
    return [
        (name, *pair)
        for name, pair in pairs.items()
        # The size that a model was trained at changes none of its parameters.
        if not name.endswith(("sample_size", "prediction_type"))
    ]


def given(init: InitConfig) -> dict[str, Path]:
    """Returns the parts that files give, and which.

    Raises:
        InputError: A checkpoint cannot be read.
    """
    found: dict[str, Path] = {}
    if init.image_encoder is not None:
        found["image_encoder"] = init.image_encoder
    if init.base is not None:
        found |= {part: init.base / part for part in ("unet", "vae", "text_encoder")}
    if (path := init.checkpoint) is not None:
        parts = PARTS[read_model(path).kind] if is_run(path) else parts_in(path)
        found |= dict.fromkeys(parts, path)
    return found


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
    abstract = {part: getattr(networks, part).abstract for part in SDM_PARTS}
    fsdp = mesh.shape["fsdp"]

    def where(path: Sequence[str | int], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, sharding.partition_spec("/".join(map(str, path)), shape, fsdp))

    placement = Placement(jnp.float32, where)
    origin = {part: path for part, path in given(init).items() if part in parts}
    missing = [part for part in parts if part not in origin]
    if not from_scratch and (lost := [part for part in missing if part != "subject_fusion"]):
        raise InputError(
            f"nothing gives the parameters of {lost}: expected --init.base, --init.image-encoder "
            "or --init.checkpoint, or a config with sizes in `model`, to train from scratch"
        )
    found: dict[str, Params] = {}
    if (path := init.checkpoint) is not None:
        wanted = [part for part in origin if origin[part] == path]
        if is_run(path):
            found = manager.read_params(path, placement=placement, wanted=wanted)
        else:
            found, _ = load_released(path, SDM_PARTS, abstract, placement, wanted=wanted)
    for part, path in origin.items():
        if part not in found:
            found[part], _ = load_folder(part, path, abstract[part], placement)
    leaves = params.flat(found)
    for name, leaf in params.flat({part: abstract[part] for part in missing}).items():
        value = params.initial(name, leaf.shape, seed)
        leaves[name] = sharding.to_mesh(value, where(name.split("/"), leaf.shape))
    sources = {part: str(path) for part, path in origin.items()}
    sources |= dict.fromkeys(missing, "random numbers")
    return leaves, sources
