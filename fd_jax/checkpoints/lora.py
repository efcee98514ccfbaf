"""LoRA: small changes of a model's matrices, merged into the weights as they are loaded.

A change is scale * alpha / rank * up @ down (arXiv:2106.09685). Files have kohya's names or those
of diffusers; LCM-LoRA (arXiv:2311.05556) is such a file.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors

from fd_jax.buckets import BucketPath, fetch
from fd_jax.checkpoints.errors import abbreviate, file_errors
from fd_jax.checkpoints.placement import Path as ParamPath
from fd_jax.checkpoints.single_file import relative
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import find_weights, open_tensors
from fd_jax.checkpoints.torch.lazy_tensor import LazyTensor
from fd_jax.checkpoints.torch.names import Names
from fd_jax.checkpoints.weights import LoadedParams, Weights
from fd_jax.errors import CheckpointError, InputError
from fd_jax.files import to_path
from fd_jax.types import Params

PARTS: dict[str, Names] = {"unet": names.UNET, "text_encoder": names.TEXT_ENCODER}
_STEM = "pytorch_lora_weights"
_DOWN = r"lora_down|lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down"
_UP = r"lora_up|lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up"
_NAME = re.compile(rf"(?P<module>.+?)\.(?:(?P<down>{_DOWN})\.weight|(?P<up>{_UP})\.weight|alpha)")
# An older form of diffusers, which names the layer last.
_PROCESSOR = re.compile(r"(.*?)\.(?:processor\.)?(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight")
_PREFIXES = (
    (r"lora_unet_|unet\.|(base_model\.model\.)?(?=(down|mid|up)_block)", "unet"),
    (r"lora_te_text_model_|text_encoder\.(text_model\.)?", "text_encoder"),
)
_RELATIVES = (
    (r"lora_te[12]_|text_encoder_2\.|lora_unet_(input|output|middle)_block", "SDXL"),
    (r"lora_unet_(double|single)_blocks|transformer\.", "Flux or Stable Diffusion 3"),
)
_OTHER_KINDS = (
    (r".*\.dora_scale$|.*\.lora_magnitude_vector", "DoRA"),
    (r".*\.hada_", "LoHa"),
    (r".*\.lokr_", "LoKr"),
    (r".*\.oft_|.*\.boft_", "OFT"),
    (r".*\.lora_mid\.", "a LoCon in Tucker's form"),
)
_OF_CONTEXT = r"attn2[._](processor\.)?to_k(_lora\.down|\..*(down|lora_A))"
_WIDTHS = {1024: "Stable Diffusion 2", 2048: "SDXL"}


class _Layer(NamedTuple):
    """The change of one matrix: two factors, and what their product is multiplied by."""

    down: LazyTensor
    up: LazyTensor
    factor: float

    def delta(self) -> np.ndarray:
        """Returns the change in PyTorch's layout, float32."""
        down, up = (np.asarray(tensor.read(), np.float32) for tensor in (self.down, self.up))
        if not (np.isfinite(down).all() and np.isfinite(up).all()):
            raise CheckpointError(f"{self.down.name} or its pair has values that are not finite")
        product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        return np.float32(self.factor) * product.reshape(len(up), *down.shape[1:])


class Lora(NamedTuple):
    """An opened LoRA: its tensors by network and module, none of them read yet."""

    path: Path
    layers: dict[str, dict[str, _Layer]]

    def match(self, abstract: Mapping[str, Params]) -> dict[str, dict[ParamPath, _Layer]]:
        """Returns the layers by network and path, of networks that may lack some of them.

        Raises:
            CheckpointError: It changes modules that the networks lack, or of another shape.
        """
        found: dict[str, dict[ParamPath, _Layer]] = {}
        unknown, misshapen = [], []
        for part, layers in self.layers.items():
            kernels = {
                _key(names.torch_names(path, PARTS[part])[0].removesuffix(".weight")): (path, leaf)
                for path, leaf in names.flatten(abstract[part]).items()
                if path[-1] == "kernel"
            }
            for key, layer in layers.items():
                if key not in kernels:
                    unknown.append(layer.down.name)
                    continue
                path, leaf = kernels[key]
                shape = (*layer.up.shape[:1], *layer.down.shape[1:])
                if shape not in names.torch_shapes(path, tuple(leaf.shape)):
                    expected = names.torch_shapes(path, tuple(leaf.shape))[0]
                    misshapen.append(f"{layer.down.name} is for {shape}, expected {expected}")
                found.setdefault(part, {})[path] = layer
        problems = [("changes unknown modules:", unknown), ("is of another size:", misshapen)]
        if message := "; ".join(f"{what} {abbreviate(all_)}" for what, all_ in problems if all_):
            raise CheckpointError(f"{self.path} {message}")
        return found


def parse_lora(text: str | os.PathLike) -> tuple[str, float]:
    """Returns path and scale of FILE or FILE:SCALE. Raises InputError."""
    text = os.fspath(text)
    path, colon, number = text.rpartition(":")
    if not colon or os.path.lexists(text):
        return text, 1.0
    try:
        scale = float(number)
    except ValueError:
        return text, 1.0  # a name with a colon, which may not exist
    if not math.isfinite(scale):
        raise InputError(f"the scale of the LoRA {path} is {number}, expected a finite number")
    return path, scale


def open_lora(where: str | os.PathLike, scale: float = 1.0) -> Lora:
    """Opens a LoRA; reads names and numbers, but no matrices.

    Args:
        where: The file, or a folder with `pytorch_lora_weights.safetensors` (or `.bin`).
        scale: Factor of its changes.

    Raises:
        CheckpointError: There is none, it is damaged, or of another kind or architecture.
    """
    path = to_path(where)
    if isinstance(path, BucketPath):
        with file_errors(f"{path} cannot be read"):
            path = fetch(path)
    path = find_weights(path, _STEM) if path.is_dir() else path
    tensors = open_tensors(path)
    _refuse_others(path, tensors)
    adapter = _adapter(path)
    halves: dict[tuple[str, str], dict[str, LazyTensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        if (parsed := _parse(name)) is None:
            unknown.append(name)
            continue
        part, module, half = parsed
        halves.setdefault((part, _key(module)), {})[half] = tensor
    if unknown or not halves:
        found = abbreviate(unknown) or "nothing"
        raise CheckpointError(
            f"{path} holds {found}, expected a LoRA in names of kohya or diffusers"
        )
    layers: dict[str, dict[str, _Layer]] = {}
    for (part, key), held in halves.items():
        layers.setdefault(part, {})[key] = _layer(path, part, key, held, adapter, scale)
    return Lora(path, layers)


def _refuse_others(path: Path, tensors: Mapping[str, LazyTensor]) -> None:
    for table, expected in ((_OTHER_KINDS, "a LoRA"), (_RELATIVES, "one of Stable Diffusion 1.5")):
        for pattern, found in table:
            if any(re.match(pattern, name) for name in tensors):
                kind = "is" if table is _OTHER_KINDS else "is a LoRA of"
                raise CheckpointError(f"{path} {kind} {found}, expected {expected}")
    for name, tensor in tensors.items():
        if re.search(_OF_CONTEXT, name) and tensor.shape[1:2] and tensor.shape[1] in _WIDTHS:
            found = _WIDTHS[tensor.shape[1]]
            raise CheckpointError(
                f"{path} is a LoRA of {found}, expected one of Stable Diffusion 1.5"
            )
    if (found := relative(tensors)) is not None:
        raise CheckpointError(f"{path} is {found}, expected a LoRA of Stable Diffusion 1.5")


def _adapter(path: Path) -> Mapping[str, Any]:
    """Returns what newer versions of diffusers write of rank and alpha into the file's header."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        adapter = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except safetensors.SafetensorError:
        return {}  # a pickle, which has no such header
    except ValueError as error:
        raise CheckpointError(f"{path}: lora_adapter_metadata is no JSON: {error}") from error
    if not isinstance(adapter, dict):
        raise CheckpointError(f"{path}: lora_adapter_metadata is no JSON object")
    for name, value in adapter.items():
        if name.rsplit(".")[-1] in ("use_dora", "use_rslora") and value:
            raise CheckpointError(f"{path}: {name} is {value}, supported is False")
    return adapter


def _parse(name: str) -> tuple[str, str, str] | None:
    """Returns network, module, and which half or number of it a tensor is."""
    for prefix, part in _PREFIXES:
        if (start := re.match(prefix, name)) is None:
            continue
        rest = name[start.end() :]
        if (old := _PROCESSOR.fullmatch(rest)) is not None:
            layer = "to_out.0" if old[2] == "to_out" else old[2]
            return part, f"{old[1]}.{_text_layer(layer, part)}", old[3]
        if (found := _NAME.fullmatch(rest)) is not None:
            half = "down" if found["down"] else "up" if found["up"] else "alpha"
            return part, found["module"], half
    return None


def _text_layer(layer: str, part: str) -> str:
    if part == "unet":
        return layer
    return {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj"}.get(layer, "out_proj")


def _key(module: str) -> str:
    """Returns a module's name with underscores alone, as kohya writes it."""
    return module.replace(".", "_")


def _layer(
    path: Path,
    part: str,
    key: str,
    held: Mapping[str, LazyTensor],
    adapter: Mapping[str, Any],
    scale: float,
) -> _Layer:
    if missing := [half for half in ("down", "up") if half not in held]:
        raise CheckpointError(f"{path}: {part} {key} lacks its {missing[0]} matrix")
    down, up = held["down"], held["up"]
    ndim = len(down.shape)
    is_pair = ndim in (2, 4) and len(up.shape) in (2, 4) and up.shape[2:] in ((), (1, 1))
    if not is_pair or not down.shape[0] or up.shape[1] != down.shape[0]:
        raise CheckpointError(
            f"{path}: {down.name} is {down.shape} and {up.name} {up.shape}, expected (rank, in) "
            "and (out, rank)"
        )
    rank = alpha = down.shape[0]
    if "alpha" in held:
        number = held["alpha"].read()
        if number.size != 1 or not np.isfinite(number).all():
            raise CheckpointError(f"{path}: {held['alpha'].name} is no finite number")
        alpha = float(number.reshape(()))
    else:
        patterns = adapter.get(f"{part}.alpha_pattern") or {}
        given = {_key(str(module)): value for module, value in patterns.items()}
        alpha = given.get(key, adapter.get(f"{part}.lora_alpha", rank))
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise CheckpointError(f"{path}: alpha of {part} {key} is {alpha!r}, expected a number")
    return _Layer(down, up, scale * alpha / rank)


def with_loras(weights: Weights, loras: Sequence[Lora], abstract: Mapping[str, Params]) -> Weights:
    """Returns weights that load with LoRAs merged into them, in float32 before the last cast.

    Args:
        weights: Opened weights.
        loras: LoRAs, whose changes add up.
        abstract: Shapes of the networks.

    Raises:
        CheckpointError: A LoRA does not fit the networks.
    """
    matched = [lora.match(abstract) for lora in loras]
    if not matched:
        return weights

    def load(parts: Any, placement: Any, shapes: Any) -> LoadedParams:
        loaded = weights.load(parts, placement._replace(dtype=np.float32), shapes)
        params = {}
        for part, tree in loaded.params.items():
            leaves = names.flatten(tree)
            changes = [layers[part] for layers in matched if part in layers]
            for path in leaves:
                leaf = leaves[path]
                for layers in changes:
                    if path in layers:
                        leaf = leaf + _placed(path, layers[path], leaf)
                leaves[path] = leaf.astype(placement.dtype) if leaf.ndim > 1 else leaf
            params[part] = names.unflatten(leaves)
        return LoadedParams(params, loaded.ignored_tensors)

    return dataclasses.replace(weights, _load=load)


def _placed(path: ParamPath, layer: _Layer, leaf: jax.Array) -> jax.Array:
    """Returns a layer's change in our layout, on the devices of the parameter."""
    delta = np.ascontiguousarray(names.from_torch(path, layer.delta(), leaf.ndim))
    return jax.make_array_from_callback(delta.shape, leaf.sharding, delta.__getitem__)
