"""Stable Diffusion's tensors by PyTorch's names and layouts, to and from our parameters."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from fd_jax.checkpoints.errors import abbreviate
from fd_jax.checkpoints.placement import Path, Placement
from fd_jax.checkpoints.torch.files import LazyTensor
from fd_jax.errors import CheckpointError
from fd_jax.types import Params

# Last level of a parameter's path -> PyTorch's name.
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}

# Our names -> PyTorch's, where they differ: patterns on names with dots. All other modules have the
# names of the checkpoints.
_UNET_NAMES = (
    (r"(attn\d\.to_out)\.", r"\1.0."),
    (r"ff\.proj_in\.", "ff.net.0.proj."),
    (r"ff\.proj_out\.", "ff.net.2."),
    (r"^downsamplers\.(\d+)\.", r"down_blocks.\1.downsamplers.0.conv."),
    (r"^upsamplers\.(\d+)\.", r"up_blocks.\1.upsamplers.0.conv."),
)
_VAE_NAMES = (
    (r"^encoder\.downsamplers\.(\d+)\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.upsamplers\.(\d+)\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    # Names in Stable Diffusion 1.5's own file and in the released checkpoints.
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.", ".proj_attn."),
)
# The layers of the VAE's attention have other names in newer files, and others again in LDM's.
_ATTENTION = ("query", "key", "value", "proj_attn")
_ATTENTION_NEWER = ("to_q", "to_k", "to_v", "to_out.0")
_ATTENTION_LDM = ("q", "k", "v", "proj_out")
_TEXT_NAMES = (
    (r"^layers\.", "encoder.layers."),
    (r"^(token|position)_embedding\.", r"embeddings.\1_embedding."),
)
_VISION_NAMES = (
    (r"^layers\.", "encoder.layers."),
    (r"^(patch|position|class)_embedding", r"embeddings.\1_embedding"),
    (r"^pre_layernorm\.", "pre_layrnorm."),  # so spelt in CLIP's files
    (r"^(?!visual_projection)", "vision_model."),
)


Substitutions = Sequence[tuple[str, str | Callable[[re.Match], str]]]


class Names(NamedTuple):
    """Names of one model's parameters in checkpoints.

    Attributes:
        ours_to_torch: Substitutions, applied in order.
        alternatives: Substitutions that give further names, under which a tensor may be found.
        buffers: Pattern of tensors that are not weights, and are ignored.
        convolutions: Pattern of matrices that are written as 1x1 convolutions.
    """

    ours_to_torch: Substitutions = ()
    alternatives: Sequence[Substitutions] = ()
    buffers: str = r"(?!)"
    convolutions: str = r"(?!)"


def _renamed(old: Sequence[str], new: Sequence[str]) -> Substitutions:
    """Returns substitutions of the names of layers."""
    return [(rf"\.{a}\.", f".{b}.") for a, b in zip(old, new, strict=True)]


LDM_ATTENTION = _renamed(_ATTENTION, _ATTENTION_LDM)
OTHER_LDM_ATTENTIONS = [_renamed(_ATTENTION_LDM, other) for other in (_ATTENTION, _ATTENTION_NEWER)]
UNET = Names(_UNET_NAMES)
VAE = Names(
    _VAE_NAMES, [_renamed(_ATTENTION, other) for other in (_ATTENTION_NEWER, _ATTENTION_LDM)]
)
TEXT_ENCODER = Names(_TEXT_NAMES, buffers=r"embeddings\.position_ids")
IMAGE_ENCODER = Names(_VISION_NAMES, buffers=r"vision_model\.embeddings\.position_ids")
SUBJECT_FUSION = Names()


class Part(NamedTuple):
    """A model inside a checkpoint: its names, all of which start with `prefix`."""

    names: Names
    prefix: str = ""


def flatten(params: Params) -> dict[Path, Any]:
    """Returns the leaves of nested parameters by path."""
    return traverse_util.flatten_dict(params)


def unflatten(leaves: Mapping[Path, Any]) -> Params:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(leaves)


def torch_names(path: Path, names: Names) -> list[str]:
    """Returns the names a parameter may have in files; exports use the first."""
    *modules, leaf = map(str, path)
    name = ".".join([*modules, _LEAVES.get(leaf, leaf)])
    for pattern, replacement in names.ours_to_torch:
        name = re.sub(pattern, replacement, name)
    found = [name]
    for substitutions in names.alternatives:
        other = name
        for pattern, replacement in substitutions:
            other = re.sub(pattern, replacement, other)
        if other not in found:
            found.append(other)
    return found


def to_torch(path: Path, value: np.ndarray) -> np.ndarray:
    """Returns a parameter in PyTorch's layout: OIHW convolutions, (out, in) matrices."""
    if path[-1] == "kernel":
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value


def from_torch(path: Path, value: np.ndarray, ndim: int) -> np.ndarray:
    """Returns a tensor in our layout, the inverse of `to_torch`; `ndim` is the parameter's."""
    if path[-1] != "kernel":
        return value
    # The VAE's attention is a 1x1 convolution in some files, a matrix in others.
    if value.ndim == 4 and ndim == 2:
        value = value[:, :, 0, 0]
    elif value.ndim == 2 and ndim == 4:
        value = value[:, :, None, None]
    return value.transpose(2, 3, 1, 0) if ndim == 4 else value.T


def torch_shapes(path: Path, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Returns the shapes a parameter may have in files."""
    if path[-1] != "kernel":
        return [shape]
    if len(shape) == 2:
        return [shape[::-1], (*shape[::-1], 1, 1)]
    height, width, c_in, c_out = shape
    return [(c_out, c_in, height, width)] + [(c_out, c_in)] * (height == width == 1)


def match(
    tensors: Mapping[str, LazyTensor],
    abstract: Mapping[str, Params],
    parts: Mapping[str, Part],
    where: str,
) -> tuple[dict[str, dict[Path, LazyTensor]], list[str]]:
    """Finds the tensor of every parameter, and checks that there are no others.

    Args:
        tensors: All tensors of a checkpoint.
        abstract: Shapes of the parameters by part.
        parts: Prefix and names of the tensors by part.
        where: Name of the checkpoint, for messages.

    Returns:
        The tensors by part and path, and the names of the buffers that are ignored.

    Raises:
        CheckpointError: Tensors are missing, misshapen, unknown or no floats; it names them.
    """
    found: dict[str, dict[Path, LazyTensor]] = {}
    missing, misshapen, not_floats, used = [], [], [], set()
    for key, part in parts.items():
        found[key] = {}
        for path, leaf in flatten(abstract[key]).items():
            names = [part.prefix + name for name in torch_names(path, part.names)]
            held = [name for name in names if name in tensors]
            if not held:
                missing.append(names[0])
                continue
            tensor = tensors[held[0]]
            used.add(held[0])
            shapes = torch_shapes(path, tuple(leaf.shape))
            if tensor.shape not in shapes:
                misshapen.append(f"{tensor.name} is {tensor.shape}, expected {shapes[0]}")
            if not jax.numpy.issubdtype(tensor.dtype, np.floating):
                not_floats.append(f"{tensor.name} is {tensor.dtype}")
            found[key][path] = tensor
    rest = [name for name in tensors if name not in used]
    buffers = [name for name in rest if any(_is_buffer(name, part) for part in parts.values())]
    problems = [
        ("lacks the tensors", missing),
        ("has tensors of another shape:", misshapen),
        ("has tensors that are no floats:", not_floats),
        ("has unknown tensors", sorted(set(rest) - set(buffers))),
    ]
    if message := "; ".join(f"{what} {abbreviate(which)}" for what, which in problems if which):
        raise CheckpointError(f"{where} {message}")
    return found, sorted(buffers)


def _is_buffer(name: str, part: Part) -> bool:
    return name.startswith(part.prefix) and bool(
        re.fullmatch(part.names.buffers, name.removeprefix(part.prefix))
    )


def load(
    found: Mapping[Path, LazyTensor], abstract: Params, placement: Placement, where: str
) -> Params:
    """Reads matched tensors into arrays, one at a time.

    Args:
        found: Tensors of one part, from `match`.
        abstract: Shapes of its parameters.
        placement: Dtype and sharding of the parameters.
        where: Name of the checkpoint, for messages.

    Raises:
        CheckpointError: A tensor is damaged, or has values that are not finite.
    """
    params = {}
    for path, leaf in flatten(abstract).items():
        tensor = found[path]
        value = tensor.read()
        if not np.isfinite(value).all():
            count = value.size - np.isfinite(value).sum()
            raise CheckpointError(
                f"{where}: {tensor.name} has {count} values of {value.size} that are NaN or "
                "infinite"
            )
        value = from_torch(path, value, leaf.ndim)
        value = np.asarray(value, placement.dtype if leaf.ndim > 1 else np.float32, order="C")
        sharding = placement.sharding(path, value.shape)
        params[path] = jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
        placement.advance(1)
    return unflatten(params)


def export(params: Params, part: Part) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every parameter's name and data in PyTorch's layout."""
    for path, value in flatten(params).items():
        name = torch_names(path, part.names)[0]
        tensor = to_torch(path, np.asarray(value))
        if re.fullmatch(part.names.convolutions, name):
            tensor = tensor[:, :, None, None]
        yield part.prefix + name, np.ascontiguousarray(tensor)
