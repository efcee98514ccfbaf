"""Stable Diffusion 1.x in a single file, named as in LDM: how models are passed around.

The file holds UNet, VAE and text encoder, or some of them. It has no configs: those of Stable
Diffusion 1.5 hold where its widths are found, and another source has to give them elsewhere.
Relatives of another architecture are recognized, so that a refusal can say what was found.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fd_jax.architecture import Architecture
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import ldm_names, names
from fd_jax.checkpoints.torch.files import write_safetensors
from fd_jax.checkpoints.torch.lazy_tensor import LazyTensor
from fd_jax.checkpoints.torch.names import Part
from fd_jax.errors import CheckpointError
from fd_jax.types import Params

_ANY_TEXT_PREFIX = "cond_stage_model."
_PREFIXES = {
    "unet": ldm_names.UNET_PREFIX,
    "vae": ldm_names.VAE_PREFIX,
    "text_encoder": _ANY_TEXT_PREFIX,
}
# What trainers save beside the weights: the noise schedule, the loss of the VAE, the rest of CLIP.
_BUFFERS = re.compile(
    r"betas|(alphas|sqrt_alphas|sqrt_one_minus_alphas)_cumprod(_prev)?|alphas_cumprod_prev"
    r"|log_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod|logvar|lvlb_weights"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|model_ema\.(decay|num_updates)|first_stage_model\.loss\..*"
    r"|cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
)
_CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"
_CONTEXT = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
# Architectures by names that they alone have.
_RELATIVES = (
    (r"conditioner\.embedders\.1\.|.*lora_te2_", "SDXL"),
    (r"conditioner\.embedders\.0\.", "the refiner of SDXL"),
    (r"model\.diffusion_model\.label_emb\.", "SDXL"),
    (r"model\.diffusion_model\.joint_blocks\.", "Stable Diffusion 3"),
    (r"(model\.diffusion_model\.)?double_blocks\.", "Flux"),
    (r"cond_stage_model\.model\.", "Stable Diffusion 2"),
    (r"control_model\.|.*input_hint_block\.", "a ControlNet"),
)
_WIDTHS = {1024: "Stable Diffusion 2", 1280: "the refiner of SDXL", 2048: "SDXL"}
_CHANNELS = {
    9: "an inpainting model",
    8: "InstructPix2Pix",
    5: "a depth model of Stable Diffusion 2",
    7: "an upscaler of Stable Diffusion 2",
}


class SingleFile(NamedTuple):
    """Tensors of a single file, none of them read yet."""

    path: Path
    tensors: dict[str, LazyTensor]

    @property
    def parts(self) -> tuple[str, ...]:
        """Networks that it holds at least one tensor of."""
        return tuple(part for part in _PREFIXES if self.holds(part))

    def holds(self, part: str) -> bool:
        """Whether there is a tensor of a network."""
        return any(name.startswith(_PREFIXES[part]) for name in self.tensors)

    @property
    def architecture(self) -> dict[str, Any]:
        """Configs of the networks, where the sizes are those of Stable Diffusion 1.5."""
        first = self.tensors.get(_CONV_IN)
        if self.holds("unet") and (first is None or first.shape[:1] != (320,)):
            return {}
        return {part: getattr(Architecture(), part) for part in self.parts}


def relative(tensors: Mapping[str, LazyTensor]) -> str | None:
    """Returns the name of the architecture that a file is of, if it is a known one but ours."""
    for pattern, architecture in _RELATIVES:
        if any(re.match(pattern, name) for name in tensors):
            return architecture
    context, first = tensors.get(_CONTEXT), tensors.get(_CONV_IN)
    if context is not None and context.shape[-1] in _WIDTHS:
        return _WIDTHS[context.shape[-1]]
    return None if first is None else _CHANNELS.get(first.shape[1] if len(first.shape) > 1 else 0)


def is_single_file(tensors: Mapping[str, LazyTensor]) -> bool:
    """Whether tensors are named as in LDM."""
    return any(name.startswith(tuple(_PREFIXES.values())) for name in tensors)


def load_parts(
    opened: SingleFile,
    wanted: Collection[str],
    abstract: Mapping[str, Params],
    placement: Placement,
    *,
    ema: bool,
) -> tuple[dict[str, Params], list[str]]:
    """Loads networks; the names and shapes of all that the file holds are checked.

    Args:
        opened: The file.
        wanted: Networks to load.
        abstract: Shapes of all networks that the file may hold.
        placement: Dtype and sharding of the parameters.
        ema: Whether to load the UNet's exponential moving average, if there is one.

    Returns:
        Parameters by network, and the names of ignored tensors.

    Raises:
        CheckpointError: The file is damaged, lacks a tensor, or holds an unknown one.
    """
    where = str(opened.path)
    if missing := [part for part in wanted if part not in opened.parts]:
        raise CheckpointError(f"{where} holds {list(opened.parts)}, expected {missing} too")
    weights = {
        name: tensor for name, tensor in opened.tensors.items() if not _BUFFERS.fullmatch(name)
    }
    ignored = sorted(opened.tensors.keys() - weights.keys())
    layouts = {
        part: layout
        for part, layout in _layouts(abstract, weights).items()
        if part in wanted or opened.holds(part)
    }
    shapes = dict(abstract)
    if any(name.startswith(ldm_names.EMA_PREFIX) for name in weights):
        layouts["ema"] = ldm_names.unet_part(abstract["unet"], ema=True)
        shapes["ema"] = abstract["unet"]
    found, buffers = names.match(weights, shapes, layouts, where)
    if ema and "ema" in found:
        found["unet"] = found["ema"]
    loaded = {part: names.load(found[part], abstract[part], placement, where) for part in wanted}
    return loaded, ignored + buffers


def _layouts(
    abstract: Mapping[str, Params], tensors: Collection[str] | None = None
) -> dict[str, Part]:
    text_prefix = ldm_names.TEXT_PREFIX
    # Newer versions of transformers save a text encoder without this level.
    if tensors is not None and not any(name.startswith(text_prefix) for name in tensors):
        text_prefix = text_prefix.removesuffix("text_model.")
    makers = {
        "unet": ldm_names.unet_part,
        "vae": ldm_names.vae_part,
        "text_encoder": lambda _: ldm_names.text_encoder_part(text_prefix),
    }
    return {part: make(abstract[part]) for part, make in makers.items() if part in abstract}


def write_single_file(path: str | os.PathLike, params: Mapping[str, Params]) -> None:
    """Writes UNet, VAE and text encoder to a safetensors file. Raises CheckpointError."""
    write_safetensors(path, dict(single_file_tensors(params)), {"format": "pt"})


def single_file_tensors(params: Mapping[str, Params]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and data of the networks' tensors, as in LDM."""
    for part, layout in _layouts(params).items():
        yield from names.export(params[part], layout)
        if part == "text_encoder":
            length = len(params[part]["position_embedding"]["embedding"])
            name = f"{layout.prefix}embeddings.position_ids"
            yield name, np.arange(length, dtype=np.int64)[None]
