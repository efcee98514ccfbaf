"""What a training run trains: the kind of its model and all sizes, in its folder's `model.json`."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.checkpoints.diffusers import schedule_from_json
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, write_json
from fd_jax.schedule import ScheduleConfig

_FILE = "model.json"
ALONE = {"vae": "vae", "encoder": "image_encoder"}  # parts that a run may train alone, by its kind


class RunModel(NamedTuple):
    """What a run trains."""

    kind: Literal["sdm", "tdm", "vae", "encoder"]
    configs: Architecture  # of a TDM, with those of an image encoder that would fit
    schedule: ScheduleConfig
    # Of a part that is trained alone, all but its own config are defaults that say nothing.


def is_run(path: str | os.PathLike) -> bool:
    """Whether this is the folder of a training run."""
    return Path(path, _FILE).is_file()


def write_model(run: str | os.PathLike, model: RunModel) -> None:
    """Writes what `read_model` reads. By the first process alone. Raises CheckpointError."""
    configs = {name: config.to_json() for name, config in model.configs._asdict().items()}
    content = {**configs, "scheduler": model.schedule.to_json()}
    if model.kind == "tdm":
        del content["image_encoder"]
    elif (part := ALONE.get(model.kind)) is not None:
        content = {part: configs[part]}
    if jax.process_index() == 0:
        write_json(Path(run) / _FILE, {"kind": model.kind, **content})


def read_model(run: str | os.PathLike) -> RunModel:
    """Reads what a run trains.

    Raises:
        CheckpointError: The file is missing or damaged.
        ConfigError: A config describes an architecture that is not supported.
    """
    path = Path(run) / _FILE
    content = read_json(path)
    kind = content.get("kind")
    if kind not in (kinds := ("sdm", "tdm", *ALONE)):
        raise CheckpointError(f"{path}: kind is {kind!r}, expected one of {kinds}")

    def section(name: str) -> dict[str, Any]:
        if not isinstance(found := content.get(name), dict):
            raise CheckpointError(f"{path}: {name} is {found!r}, expected a JSON object")
        return found

    def config(cls: type, name: str) -> Any:
        return cls.from_json(section(name), f"{path}: {name}")

    if (part := ALONE.get(kind)) is not None:
        cls = {"vae": VAEConfig, "image_encoder": CLIPVisionConfig}[part]
        return RunModel(kind, Architecture(**{part: config(cls, part)}), ScheduleConfig())
    text = config(CLIPTextConfig, "text_encoder")
    if kind == "sdm":
        vision = config(CLIPVisionConfig, "image_encoder")
    else:
        vision = CLIPVisionConfig(projection_dim=text.hidden_size)
    configs = Architecture(config(UNetConfig, "unet"), config(VAEConfig, "vae"), text, vision)
    configs.check()
    schedule = schedule_from_json(section("scheduler"), f"{path}: scheduler")
    return RunModel(kind, configs, schedule)
