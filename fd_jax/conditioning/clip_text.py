"""CLIP's text encoder."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from fd_jax.architecture import CLIPTextConfig
from fd_jax.conditioning.clip_layers import EncoderLayer, layer_norm
from fd_jax.types import Context, Tokens


class TextEncoder(nnx.Module):
    """Encodes tokens to hidden states after the final normalization.

    Args:
        config: Architecture of the encoder.
        dtype: Dtype of the computation, except in norms and softmax.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(self, config: CLIPTextConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dim = config.hidden_size
        common = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.token_embedding = nnx.Embed(config.vocab_size, dim, **common)
        self.position_embedding = nnx.Embed(config.max_length, dim, **common)
        self.layers = nnx.List(
            [
                EncoderLayer(dim, config.num_heads, config.intermediate_size, **common)
                for _ in range(config.num_layers)
            ]
        )
        self.final_layer_norm = layer_norm(dim, **common)

    def __call__(self, input_ids: Tokens) -> Context:
        """Encodes tokens, each of which sees itself and those before it.

        There is no padding mask: the padding of a short prompt is encoded too, as it was in the
        training of Stable Diffusion.
        """
        length = input_ids.shape[1]
        positions = self.position_embedding(jnp.arange(length))
        x = self.token_embedding(input_ids) + positions[None]
        mask = jnp.tri(length, dtype=bool)
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_layer_norm(x)
