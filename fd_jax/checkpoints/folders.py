"""Folders of diffusers and transformers: configs and weights of one model each."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fd_jax.checkpoints import torch_weights
from fd_jax.checkpoints.torch_files import (
    CheckpointError,
    find_weights,
    open_tensors,
    write_safetensors,
)
from fd_jax.checkpoints.torch_weights import Part, Placement
from fd_jax.config import CLIPTextConfig, CLIPVisionConfig, Configs, UNetConfig, VAEConfig
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params

_CLIP_REST = (
    r"vision_model\.embeddings\.position_ids|text_model\..*|text_projection\..*|logit_scale"
)

# Stem of the weight files, and how their tensors are named.
KINDS = {
    "unet": ("diffusion_pytorch_model", Part(torch_weights.UNET)),
    "vae": ("diffusion_pytorch_model", Part(torch_weights.VAE)),
    "text_encoder": ("model", Part(torch_weights.TEXT_ENCODER, "text_model.")),
    # A whole CLIP, of which the vision tower is read.
    "image_encoder": ("model", Part(torch_weights.IMAGE_ENCODER._replace(buffers=_CLIP_REST))),
}


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist, expected a config") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_configs(
    base: str | os.PathLike, image_encoder: str | os.PathLike
) -> tuple[Configs, ScheduleConfig]:
    """Reads the sizes of all networks, and the noise schedule.

    Args:
        base: Stable Diffusion 1.x as diffusers stores it.
        image_encoder: A CLIP as transformers stores it.

    Raises:
        CheckpointError: A folder or a config is missing or damaged.
        ConfigError: A config describes an architecture that is not supported.
    """
    base, image_encoder = Path(base), Path(image_encoder)
    for folder, kind in ((base, "Stable Diffusion 1.x"), (image_encoder, "a CLIP")):
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is no folder, expected {kind}")

    def config(cls: type, folder: Path) -> Any:
        path = folder / "config.json"
        return cls.from_json(read_json(path), str(path))

    schedule = base / "scheduler" / "scheduler_config.json"
    try:
        schedule_config = ScheduleConfig.from_json(read_json(schedule))
    except CheckpointError:
        raise
    except (ValueError, OverflowError) as error:  # of an integer that no float can hold
        raise CheckpointError(f"{schedule}: {error}") from error
    configs = Configs(
        config(UNetConfig, base / "unet"),
        config(VAEConfig, base / "vae"),
        config(CLIPTextConfig, base / "text_encoder"),
        config(CLIPVisionConfig, image_encoder),
    )
    configs.check()
    return configs, schedule_config


def load_folder(
    kind: str, folder: str | os.PathLike, abstract: Params, placement: Placement
) -> tuple[Params, list[str]]:
    """Reads the weights of one model.

    Args:
        kind: Key of `KINDS`.
        folder: The model's own folder, such as `BASE/vae`.
        abstract: Shapes of its parameters.
        placement: Where they are to live.

    Returns:
        The parameters, and the names of tensors left behind.

    Raises:
        CheckpointError: The weights are missing, damaged, or of another model.
    """
    stem, part = KINDS[kind]
    path = find_weights(folder, stem)
    tensors = open_tensors(path)
    if part.prefix and not any(name.startswith(part.prefix) for name in tensors):
        part = part._replace(prefix="")
    found, buffers = torch_weights.match(tensors, {kind: abstract}, {kind: part}, str(path))
    return torch_weights.load(found[kind], abstract, placement, str(path)), buffers


def write_folder(
    kind: str, folder: str | os.PathLike, params: Params, config: Mapping[str, Any]
) -> None:
    """Writes what `load_folder`, diffusers and transformers read. Raises CheckpointError."""
    stem, part = KINDS[kind]
    folder = Path(folder)
    write_json(folder / "config.json", config)
    tensors = dict(torch_weights.export(params, part))
    write_safetensors(folder / f"{stem}.safetensors", tensors, {"format": "pt"})


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, and the folder it is in. Raises CheckpointError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the file: {error}") from error
