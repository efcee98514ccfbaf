"""The networks of Face-diffuser, sized by the configs of their checkpoints."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from fd_jax.architecture import Architecture
from fd_jax.conditioning.clip_text import TextEncoder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.conditioning.subject_fusion import SubjectFusion
from fd_jax.models.unet import UNet
from fd_jax.models.vae import VAE
from fd_jax.ops.attention import AttentionKind, check_kind
from fd_jax.ops.layers import Remat
from fd_jax.types import Params


class Network(NamedTuple):
    """A module without its parameters: `graphdef` is static, `abstract` their shapes."""

    graphdef: nnx.GraphDef
    abstract: Params

    def bind(self, params: Params) -> Any:
        """Returns the module with `params`, for use inside a compiled function."""
        return nnx.merge(self.graphdef, params)


class _SameKey(nnx.RngStream):
    """A stream that does not count: at 686 parameters, tracing its counter takes seconds."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def _network(make: Callable[..., nnx.Module]) -> Network:
    def module() -> nnx.Module:
        rngs = nnx.Rngs()
        rngs.params = _SameKey(0, tag="params")
        return make(rngs=rngs)

    graphdef, state = nnx.split(nnx.eval_shape(module))
    return Network(graphdef, nnx.to_pure_dict(state))


class Networks(NamedTuple):
    """All networks, and the dtype they compute in. SDM and TDM share the graph of `unet`."""

    text_encoder: Network
    image_encoder: Network
    subject_fusion: Network
    unet: Network
    vae: Network
    dtype: jnp.dtype


def make_networks(
    configs: Architecture,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionKind = "auto",
    remat: Remat = "none",
) -> Networks:
    """Returns all networks. Nothing is allocated.

    Raises:
        InputError: The networks do not fit together, or the kind of attention is unknown.
    """
    configs.check()
    check_kind(attention)
    width = configs.text_encoder.hidden_size
    unet = {"dtype": dtype, "attention": attention, "remat": remat}
    return Networks(
        _network(lambda rngs: TextEncoder(configs.text_encoder, dtype=dtype, rngs=rngs)),
        _network(lambda rngs: ImageEncoder(configs.image_encoder, dtype=dtype, rngs=rngs)),
        _network(lambda rngs: SubjectFusion(width, dtype=dtype, rngs=rngs)),
        _network(lambda rngs: UNet(configs.unet, **unet, rngs=rngs)),
        _network(lambda rngs: VAE(configs.vae, dtype=dtype, rngs=rngs)),
        jnp.dtype(dtype),
    )
