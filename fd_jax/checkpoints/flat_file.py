"""The flat files that the released Face-diffuser and FastComposer trainings save."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np

from fd_jax.architecture import Architecture
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import find_weights, open_tensors, write_safetensors
from fd_jax.checkpoints.torch.names import Part
from fd_jax.types import Params

TDM_PARTS = {
    "text_encoder": Part(names.TEXT_ENCODER, "text_encoder."),
    "vae": Part(names.VAE, "vae."),
    "unet": Part(names.UNET, "unet."),
}
SDM_PARTS = {
    **TDM_PARTS,
    "image_encoder": Part(names.IMAGE_ENCODER, "image_encoder."),
    "subject_fusion": Part(names.SUBJECT_FUSION, "postfuse_module."),
}


def parts_in(path: str | os.PathLike) -> list[str]:
    """Returns which parts a flat checkpoint holds. Raises CheckpointError."""
    names = open_tensors(_file(path))
    return [
        key
        for key, part in SDM_PARTS.items()
        if any(name.startswith(part.prefix) for name in names)
    ]


def load_released(
    path: str | os.PathLike,
    parts: Mapping[str, Part],
    abstract: Mapping[str, Params],
    placement: Placement,
    *,
    wanted: Collection[str],
) -> tuple[dict[str, Params], list[str]]:
    """Reads the wanted parts of a flat checkpoint.

    Args:
        path: The file, or a folder with `pytorch_model.bin` or `model.safetensors`.
        parts: `SDM_PARTS` or `TDM_PARTS`.
        abstract: Shapes of the parameters by part.
        placement: Where they are to live.
        wanted: Parts to read. Of the others names and shapes are checked; they may be absent.

    Returns:
        Parameters by part, and the names of buffers left behind.

    Raises:
        CheckpointError: The file is missing, damaged, or of another model.
    """
    path = _file(path)
    tensors = open_tensors(path)
    expected = {
        key: part
        for key, part in parts.items()
        if key in wanted or any(name.startswith(part.prefix) for name in tensors)
    }
    found, buffers = names.match(tensors, abstract, expected, str(path))
    loaded = {key: names.load(found[key], abstract[key], placement, str(path)) for key in wanted}
    return loaded, buffers


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return find_weights(path, "model") if path.is_dir() else path


def write_released(
    path: str | os.PathLike, parts: Mapping[str, Part], params: Mapping[str, Params]
) -> None:
    """Writes all parts to a safetensors file, named as released. Raises CheckpointError."""
    write_safetensors(path, dict(released_tensors(parts, params)), {"format": "pt"})


def released_tensors(
    parts: Mapping[str, Part], params: Mapping[str, Params]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and data of all parts, as they are released."""
    for key, part in parts.items():
        yield from names.export(params[key], part)


def position_ids(parts: Collection[str], configs: Architecture) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the buffers that the released code expects in its files beside the parameters."""
    vision = configs.image_encoder
    lengths = {
        "text_encoder": ("embeddings", configs.text_encoder.max_length),
        "image_encoder": (
            "vision_model.embeddings",
            1 + (vision.image_size // vision.patch_size) ** 2,
        ),
    }
    for key, (module, length) in lengths.items():
        if key in parts:
            yield f"{key}.{module}.position_ids", np.arange(length, dtype=np.int64)[None]
