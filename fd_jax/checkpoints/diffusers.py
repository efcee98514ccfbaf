"""Folders of diffusers and transformers: configs and weights of one model each."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints import config_json
from fd_jax.checkpoints.config_json import config_from_json, config_to_json, schedule_to_json
from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import find_weights, open_tensors, write_safetensors
from fd_jax.checkpoints.torch.names import Part
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, write_json
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params

_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
}

_CLIP_REST = (
    r"vision_model\.embeddings\.position_ids|text_model\..*|text_projection\..*|logit_scale"
)

# Stem of the weight files, and how their tensors are named.
KINDS = {
    "unet": ("diffusion_pytorch_model", Part(names.UNET)),
    "vae": ("diffusion_pytorch_model", Part(names.VAE)),
    "text_encoder": ("model", Part(names.TEXT_ENCODER, "text_model.")),
    # A whole CLIP, of which the image encoder is read.
    "image_encoder": ("model", Part(names.IMAGE_ENCODER._replace(buffers=_CLIP_REST))),
}


def read_configs(
    base: str | os.PathLike, image_encoder: str | os.PathLike | None
) -> tuple[Architecture, ScheduleConfig]:
    """Reads the sizes of all networks, and the noise schedule.

    Args:
        base: Stable Diffusion 1.x as diffusers stores it.
        image_encoder: A CLIP as transformers stores it; None where no subjects are encoded.

    Raises:
        CheckpointError: A folder or a config is missing or damaged.
        ConfigError: A config describes an architecture that is not supported.
    """
    base = Path(base)
    for folder, kind in ((base, "Stable Diffusion 1.x"), (image_encoder, "a CLIP")):
        if folder is not None and not Path(folder).is_dir():
            raise CheckpointError(f"{folder} is no folder, expected {kind}")

    def config(cls: type, folder: Path) -> Any:
        path = folder / "config.json"
        return config_from_json(cls, read_json(path), str(path))

    schedule = base / "scheduler" / "scheduler_config.json"
    schedule_config = schedule_from_json(read_json(schedule), str(schedule))
    text = config(CLIPTextConfig, base / "text_encoder")
    if image_encoder is None:
        vision = CLIPVisionConfig(projection_dim=text.hidden_size)
    else:
        vision = config(CLIPVisionConfig, Path(image_encoder))
    configs = Architecture(
        config(UNetConfig, base / "unet"), config(VAEConfig, base / "vae"), text, vision
    )
    configs.check()
    return configs, schedule_config


def part_in(folder: Path) -> str:
    """Returns the network that the folder of one model describes. Raises CheckpointError."""
    path = folder / "config.json"
    content = read_json(path)
    if (name := content.get("_class_name")) is None:
        return "text_encoder" if content.get("model_type") == "clip_text_model" else "image_encoder"
    classes = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae"}
    if name not in classes:
        raise CheckpointError(f"{path}: _class_name is {name!r}, expected one of {[*classes]}")
    return classes[name]


def read_config(part: str, folder: Path) -> Any:
    """Reads the config of a network from its folder. Raises ConfigError or CheckpointError."""
    path = folder / "config.json"
    return config_from_json(Architecture.__annotations__[part], read_json(path), str(path))


def read_schedule(folder: Path) -> ScheduleConfig:
    """Reads the noise schedule from the folder of a scheduler. Raises CheckpointError."""
    path = folder / "scheduler_config.json"
    return schedule_from_json(read_json(path), str(path))


def schedule_from_json(content: Mapping[str, Any], where: str) -> ScheduleConfig:
    """Returns the noise schedule of a scheduler's config. Raises CheckpointError."""
    try:
        return config_json.schedule_from_json(content)
    except (ValueError, OverflowError) as error:  # of an integer that no float can hold
        raise CheckpointError(f"{where}: {error}") from error


def load_folder(
    kind: str, folder: str | os.PathLike, abstract: Params, placement: Placement
) -> tuple[Params, list[str]]:
    """Reads the weights of one model.

    Args:
        kind: Key of `KINDS`.
        folder: The model's own folder, such as `BASE/vae`.
        abstract: Shapes of its parameters.
        placement: Dtype and sharding of the parameters.

    Returns:
        The parameters, and the names of tensors that were ignored.

    Raises:
        CheckpointError: The weights are missing, damaged, or of another model.
    """
    stem, part = KINDS[kind]
    path = find_weights(folder, stem)
    tensors = open_tensors(path)
    if part.prefix and not any(name.startswith(part.prefix) for name in tensors):
        part = part._replace(prefix="")
    found, buffers = names.match(tensors, {kind: abstract}, {kind: part}, str(path))
    return names.load(found[kind], abstract, placement, str(path)), buffers


def write_config(part: str, folder: Path, config: Any) -> None:
    """Writes the config of a network to its folder. Raises CheckpointError."""
    write_json(folder / "config.json", config_to_json(config))


def write_schedule(folder: Path, schedule: ScheduleConfig) -> None:
    """Writes a noise schedule to the folder of a scheduler. Raises CheckpointError."""
    write_json(folder / "scheduler_config.json", schedule_to_json(schedule))


def write_folder(part: str, folder: str | os.PathLike, params: Params, config: Any) -> None:
    """Writes a network for `load_folder`, diffusers and transformers. Raises CheckpointError."""
    stem, layout = KINDS[part]
    folder = Path(folder)
    write_config(part, folder, config)
    tensors = dict(names.export(params, layout))
    write_safetensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"})


def write_stable_diffusion(
    folder: str | os.PathLike,
    params: Mapping[str, Params],
    architecture: Mapping[str, Any],
    schedule: ScheduleConfig,
) -> None:
    """Writes UNet, VAE, text encoder, scheduler and CLIP's tokenizer for diffusers.

    Args:
        folder: Folder to write.
        params: Parameters by network.
        architecture: Configs by network.
        schedule: Noise schedule.

    Raises:
        CheckpointError: A file cannot be written.
    """
    folder = Path(folder)
    for part in ("unet", "vae", "text_encoder"):
        write_folder(part, folder / part, params[part], architecture[part])
    write_schedule(folder / "scheduler", schedule)
    write_json(folder / "model_index.json", _MODEL_INDEX)
    with file_errors(f"{folder}: cannot write the tokenizer"):
        shutil.copytree(TOKENIZER, folder / "tokenizer", dirs_exist_ok=True)
