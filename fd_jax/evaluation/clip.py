"""CLIP as a judge of prompts: cosines of images and texts, in this project's towers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fd_jax import sharding
from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig
from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints.config_json import config_from_json
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch import names
from fd_jax.checkpoints.torch.files import find_weights, open_tensors
from fd_jax.conditioning.clip_text import TextEncoder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.data.captions import load_tokenizer, strip_markers, tokenize
from fd_jax.errors import InputError
from fd_jax.files import local_path, read_json
from fd_jax.networks import make_network
from fd_jax.numerics import pinned
from fd_jax.types import Params, Tokens

# All of a CLIP's tensors, in two parts.
_REST = r"logit_scale|(text|vision)_model\.embeddings\.position_ids"
_TEXT = names.Part(
    names.Names(
        (*names.TEXT_ENCODER.ours_to_torch, (r"^(?!text_projection)", "text_model.")),
        buffers=_REST,
    )
)
_IMAGE = names.Part(names.IMAGE_ENCODER._replace(buffers=_REST))


class TextTower(nnx.Module):
    """CLIP's text encoder with its projection.

    Args:
        config: Architecture of the encoder.
        projection_dim: Width of the embeddings.
        dtype: Dtype of the computation, except in norms and softmax.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(
        self, config: CLIPTextConfig, projection_dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.encoder = TextEncoder(config, dtype=dtype, rngs=rngs)
        self.text_projection = nnx.Linear(
            config.hidden_size, projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, input_ids: Tokens, end: Int[Array, " b"]) -> Float[Array, "b d"]:
        """Returns the projected hidden state of the token at `end`, that of the text's end."""
        hidden = self.encoder(input_ids)
        return self.text_projection(jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0])


class Clip:
    """Embeds images and texts, batches over the mesh.

    Attributes:
        description: What it is, in one line.

    Args:
        folder: A CLIP as transformers stores it: `config.json`, and `model.safetensors` or
            `pytorch_model.bin`.
        mesh: Devices.
        batch_size: Images or texts at a time, rounded up to a multiple of the devices.

    Raises:
        InputError: A file is missing or damaged, or of another model.
    """

    def __init__(self, folder: Path, mesh: Mesh, batch_size: int = 32):
        folder = local_path(folder)
        if not folder.is_dir():
            raise InputError(f"CLIP {folder} is no folder, expected one with config.json")
        path = folder / "config.json"
        content = read_json(path)
        text_config: Any = config_from_json(CLIPTextConfig, content, str(path))
        image_config: Any = config_from_json(CLIPVisionConfig, content, str(path))
        dim = image_config.projection_dim
        text = make_network(lambda rngs: TextTower(text_config, dim, dtype=jnp.float32, rngs=rngs))
        image = make_network(lambda rngs: ImageEncoder(image_config, dtype=jnp.float32, rngs=rngs))
        abstract = {"text": _flat(text.abstract), "image": image.abstract}
        weights = find_weights(folder, "model")
        tensors = open_tensors(weights)
        found, _ = names.match(tensors, abstract, {"text": _TEXT, "image": _IMAGE}, str(weights))
        replicated = sharding.replicated(mesh)
        placement = Placement(jnp.float32, lambda path, shape: replicated)
        params = {
            part: names.load(found[part], abstract[part], placement, str(weights))
            for part in abstract
        }
        self._text_params, self._image_params = _nested(params["text"]), params["image"]
        self._mesh, self._batch_size = mesh, batch_size
        self._side = image_config.image_size
        self._embed_text = jax.jit(lambda params, ids, end: _unit(text.bind(params)(ids, end)))
        self._embed_image = jax.jit(lambda params, pixels: _unit(image.bind(params)(pixels)))
        self._tokenizer = load_tokenizer(TOKENIZER)
        self.description = (
            f"CLIP, vision {image_config.num_layers} layers of {image_config.hidden_size}, patches "
            f"of {image_config.patch_size} in {self._side} px ({folder.name}), in float32"
        )

    def images(self, pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, "n d"]:
        """Returns embeddings of length 1 of RGB images, resized and cut to the middle."""
        pixels = np.stack([_middle(picture, self._side) for picture in pictures])
        return self._batched(self._embed_image, self._image_params, pixels)

    def texts(self, prompts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Returns embeddings of length 1 of prompts without their markers."""
        stripped = [strip_markers(prompt) for prompt in prompts]
        ids = np.stack([tokenize(self._tokenizer, prompt).input_ids for prompt in stripped])
        end = ids.argmax(axis=1).astype(np.int32)  # the end of text is the last of all tokens
        return self._batched(self._embed_text, self._text_params, ids, end)

    def _batched(self, function: Any, params: Params, *columns: np.ndarray) -> np.ndarray:
        return np.concatenate(list(self._batches(function, params, columns)))

    def _batches(
        self, function: Any, params: Params, columns: Sequence[np.ndarray]
    ) -> Iterator[np.ndarray]:
        count = len(columns[0])
        rows = sharding.batched(self._mesh)
        for chosen in sharding.whole_batches(count, self._batch_size, self._mesh):
            with pinned(jnp.dtype(jnp.float32)):
                batch = sharding.to_mesh(tuple(column[chosen] for column in columns), rows)
                found = sharding.to_host(function(params, *batch))
            yield found[: min(len(chosen), count - int(chosen[0]))]


def _flat(abstract: Params) -> Params:
    """Puts the encoder's parameters beside the projection, as files name them."""
    return {**abstract["encoder"], "text_projection": abstract["text_projection"]}


def _nested(params: Params) -> Params:
    projection = params["text_projection"]
    encoder = {name: part for name, part in params.items() if name != "text_projection"}
    return {"encoder": encoder, "text_projection": projection}


def _middle(picture: UInt8[np.ndarray, "_ _ 3"], side: int) -> Float[np.ndarray, "side side 3"]:
    """Resizes the shorter side, bicubic as CLIP does, and cuts the middle; returns [0, 1]."""
    image = Image.fromarray(picture)
    scale = side / min(image.size)
    width, height = (max(int(length * scale), side) for length in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, np.float32) / 255


def _unit(vectors: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
