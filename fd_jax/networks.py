"""Networks of Face-diffuser, created from their architecture without allocating parameters."""

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
    """Module without parameters: its static graph, and the shapes of its parameters."""

    graphdef: nnx.GraphDef
    abstract: Params

    def bind(self, params: Params) -> Any:
        """Creates the module with parameters, inside a jitted function."""
        return nnx.merge(self.graphdef, params)


class _SameKey(nnx.RngStream):
    """Random stream without a counter: tracing one takes seconds at 686 parameters."""

    def __call__(self) -> jax.Array:
        return self.key[...]


def make_network(make: Callable[..., nnx.Module]) -> Network:
    """Returns a module without its parameters, from a function of the keyword `rngs`."""

    def module() -> nnx.Module:
        rngs = nnx.Rngs()
        rngs.params = _SameKey(0, tag="params")  # pyright: ignore[reportAttributeAccessIssue]
        return make(rngs=rngs)

    graphdef, state = nnx.split(nnx.eval_shape(module))
    return Network(graphdef, nnx.to_pure_dict(state))


class Networks(NamedTuple):
    """All networks, and the dtype of their computation. SDM and TDM share `unet`."""

    text_encoder: Network
    image_encoder: Network
    subject_fusion: Network
    unet: Network
    vae: Network
    dtype: jnp.dtype

    def shapes(self) -> dict[str, Params]:
        """Returns the shapes of all parameters by network."""
        return {name: getattr(self, name).abstract for name in self._fields if name != "dtype"}


def make_networks(
    architecture: Architecture,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: AttentionKind = "auto",
    remat: Remat = "none",
) -> Networks:
    """Creates all networks. No parameter is allocated.

    Args:
        architecture: Configs of the networks.
        dtype: Dtype of the computation; parameters are float32.
        attention: Implementation of attention in the UNet, see `ops.attention`.
        remat: Activations that the UNet's backward pass rematerializes, see `ops.layers.remat`.

    Raises:
        InputError: The networks do not fit together, or `attention` is unknown.
    """
    architecture.check()
    check_kind(attention)
    width = architecture.text_encoder.hidden_size
    unet = {"dtype": dtype, "attention": attention, "remat": remat}
    return Networks(
        make_network(lambda rngs: TextEncoder(architecture.text_encoder, dtype=dtype, rngs=rngs)),
        make_network(lambda rngs: ImageEncoder(architecture.image_encoder, dtype=dtype, rngs=rngs)),
        make_network(lambda rngs: SubjectFusion(width, dtype=dtype, rngs=rngs)),
        make_network(lambda rngs: UNet(architecture.unet, **unet, rngs=rngs)),
        make_network(lambda rngs: VAE(architecture.vae, dtype=dtype, rngs=rngs)),
        jnp.dtype(dtype),
    )
