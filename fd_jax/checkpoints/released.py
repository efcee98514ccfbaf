"""The flat files that the released Face-diffuser and FastComposer trainings save."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from fd_jax.checkpoints import torch_weights
from fd_jax.checkpoints.torch_files import find_weights, open_tensors, write_safetensors
from fd_jax.checkpoints.torch_weights import Part, Placement
from fd_jax.types import Params

TDM_PARTS = {
    "text_encoder": Part(torch_weights.TEXT_ENCODER, "text_encoder."),
    "vae": Part(torch_weights.VAE, "vae."),
    "unet": Part(torch_weights.UNET, "unet."),
}
SDM_PARTS = {
    **TDM_PARTS,
    "image_encoder": Part(torch_weights.IMAGE_ENCODER, "image_encoder."),
    "subject_fusion": Part(torch_weights.SUBJECT_FUSION, "postfuse_module."),
}


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
    path = Path(path)
    if path.is_dir():
        path = find_weights(path, "model")
    tensors = open_tensors(path)
    expected = {
        key: part
        for key, part in parts.items()
        if key in wanted or any(name.startswith(part.prefix) for name in tensors)
    }
    found, buffers = torch_weights.match(tensors, abstract, expected, str(path))
    loaded = {
        key: torch_weights.load(found[key], abstract[key], placement, str(path)) for key in wanted
    }
    return loaded, buffers


def write_released(
    path: str | os.PathLike, parts: Mapping[str, Part], params: Mapping[str, Params]
) -> None:
    """Writes all parts to a safetensors file, named as released. Raises CheckpointError."""
    tensors = {}
    for key, part in parts.items():
        tensors.update(torch_weights.export(params[key], part))
    write_safetensors(path, tensors, {"format": "pt"})
