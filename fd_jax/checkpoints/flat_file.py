"""The flat files that the released Face-diffuser and FastComposer trainings save."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import (
    find_weights,
    has_weights,
    open_tensors,
    write_safetensors,
)
from fd_jax.checkpoints.torch.lazy_tensor import LazyTensor
from fd_jax.checkpoints.torch.names import Part
from fd_jax.types import Params

# Names of each network's tensors, in the order in which the released files hold them.
PARTS = {
    "text_encoder": Part(names.TEXT_ENCODER, "text_encoder."),
    "vae": Part(names.VAE, "vae."),
    "unet": Part(names.UNET, "unet."),
    "image_encoder": Part(names.IMAGE_ENCODER, "image_encoder."),
    "subject_fusion": Part(names.SUBJECT_FUSION, "postfuse_module."),
}
_IN_UNET = "down_blocks.0.resnets.0.conv1.weight"
_STEM = "model"  # of the file's name, see `find_weights`


class FlatFile(NamedTuple):
    """Tensors of a flat checkpoint, none of them read yet."""

    path: Path
    tensors: dict[str, LazyTensor]

    @property
    def parts(self) -> tuple[str, ...]:
        """Networks that it holds at least one tensor of."""
        return tuple(part for part in PARTS if self.holds(part))

    def holds(self, part: str) -> bool:
        """Whether there is a tensor of a network."""
        prefix = PARTS[part].prefix
        return any(name.startswith(prefix) for name in self.tensors)


def is_flat_folder(folder: Path) -> bool:
    """Whether a folder holds a flat checkpoint."""
    return has_weights(folder, _STEM)


def open_flat_file(path: str | os.PathLike) -> FlatFile:
    """Opens a flat checkpoint.

    Args:
        path: The file, or a folder with `pytorch_model.bin` or `model.safetensors`.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    path = Path(path)
    path = find_weights(path, _STEM) if path.is_dir() else path
    return from_tensors(path, open_tensors(path))


def from_tensors(path: Path, tensors: dict[str, LazyTensor]) -> FlatFile:
    """Returns the tensors of a file, which may be those of a UNet alone, as diffusers saves it."""
    if _IN_UNET in tensors:
        tensors = {PARTS["unet"].prefix + name: tensor for name, tensor in tensors.items()}
    return FlatFile(path, tensors)


def load_parts(
    opened: FlatFile,
    wanted: Collection[str],
    abstract: Mapping[str, Params],
    placement: Placement,
) -> tuple[dict[str, Params], list[str]]:
    """Loads networks of a flat checkpoint.

    Args:
        opened: The checkpoint.
        wanted: Networks to load. The names and shapes of the others are checked.
        abstract: Shapes of all networks that the file may hold.
        placement: Dtype and sharding of the parameters.

    Returns:
        Parameters by network, and the names of ignored tensors.

    Raises:
        CheckpointError: The file is damaged, lacks a tensor, or holds an unknown one.
    """
    expected = {
        part: layout
        for part, layout in PARTS.items()
        if part in wanted or (part in abstract and opened.holds(part))
    }
    where = str(opened.path)
    found, ignored = names.match(opened.tensors, abstract, expected, where)
    loaded = {part: names.load(found[part], abstract[part], placement, where) for part in wanted}
    return loaded, ignored


def write_flat_file(path: str | os.PathLike, params: Mapping[str, Params]) -> None:
    """Writes networks to a safetensors file, named as released. Raises CheckpointError."""
    write_safetensors(path, dict(flat_tensors(params)), {"format": "pt"})


def flat_tensors(params: Mapping[str, Params]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and data of the networks' tensors, as they are released."""
    for part, layout in PARTS.items():
        if part in params:
            yield from names.export(params[part], layout)


def position_ids(architecture: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the buffers that the released code expects beside the parameters.

    Args:
        architecture: Configs of the networks that the file holds.
    """
    if "text_encoder" in architecture:
        yield from _position_ids("text_encoder.", architecture["text_encoder"].max_length)
    if "image_encoder" in architecture:
        vision = architecture["image_encoder"]
        length = 1 + (vision.image_size // vision.patch_size) ** 2
        yield from _position_ids("image_encoder.vision_model.", length)


def _position_ids(prefix: str, length: int) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{prefix}embeddings.position_ids", np.arange(length, dtype=np.int64)[None]
