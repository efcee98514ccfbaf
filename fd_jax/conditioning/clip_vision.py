"""CLIP's image encoder: subject pixels to one embedding per subject."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fd_jax.architecture import CLIPVisionConfig
from fd_jax.conditioning.clip_layers import EncoderLayer, layer_norm
from fd_jax.ops.layers import resize

# Mean and standard deviation by which CLIP normalizes images (github.com/openai/CLIP).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder(nnx.Module):
    """Encodes images to the projected hidden state of the class token.

    Args:
        config: Architecture of the encoder.
        dtype: Dtype of the computation, except in norms and softmax.
        rngs: Keys for parameter initialization. None is kept after construction.
    """

    def __init__(self, config: CLIPVisionConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dim = config.hidden_size
        common = {"dtype": dtype, "rngs": rngs}
        patch = (config.patch_size, config.patch_size)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.config = config
        self.dtype = dtype
        self.class_embedding = nnx.Param(jnp.zeros((dim,)))
        self.patch_embedding = nnx.Conv(
            3, dim, patch, strides=patch, padding="VALID", use_bias=False, **common
        )
        self.position_embedding = nnx.Embed(num_patches + 1, dim, **common)
        self.pre_layernorm = layer_norm(dim, **common)
        self.layers = nnx.List(
            [
                EncoderLayer(dim, config.num_heads, config.intermediate_size, **common)
                for _ in range(config.num_layers)
            ]
        )
        self.post_layernorm = layer_norm(dim, **common)
        self.visual_projection = nnx.Linear(dim, config.projection_dim, use_bias=False, **common)

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Returns embeddings, not normalized, of images in [0, 1] of any size."""
        size = self.config.image_size
        pixels = resize(pixels, (size, size))
        mean, std = jnp.array(MEAN)[None, None, None], jnp.array(STD)[None, None, None]
        x = self.patch_embedding(((pixels - mean) / std).astype(self.dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = self.class_embedding[...].astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, x.shape[-1])), x], axis=1)
        x = x + self.position_embedding(jnp.arange(x.shape[1]))[None]
        x = self.pre_layernorm(x)
        for layer in self.layers:
            x = layer(x)
        return self.visual_projection(self.post_layernorm(x[:, 0]))
