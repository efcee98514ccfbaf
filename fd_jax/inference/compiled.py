"""Jitted functions of sampling over a mesh: encode, generate, decode, reconstruct, embed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, Key, UInt8, UInt32

from fd_jax import sharding
from fd_jax.compilation import compiler_options
from fd_jax.conditioning.encode import encode
from fd_jax.images.pixels import to_signed, to_unit
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.networks import Networks
from fd_jax.numerics import pinned, seed_key
from fd_jax.sampling.generate import Contexts, Trace, initial_noise, sample
from fd_jax.sampling.guidance import as_eps, guided, guided_reusing
from fd_jax.sampling.noise_fusion import Smoothing
from fd_jax.sampling.solvers import SolverState, init_state
from fd_jax.sampling.stages import Steps, pad_steps
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Latents, Params

# Rows of the table per dispatch while parts are followed: one jitted function serves any number of
# steps. If nobody follows, all rows are one dispatch. A callback out of the scan would hand out
# parts too, but functions with callbacks are not kept in the compile cache.
PART_ROWS = 5


class ModelParams(NamedTuple):
    """Parameters of all networks, on the mesh."""

    text_encoder: Params
    image_encoder: Params
    subject_fusion: Params
    sdm: Params
    tdm: Params
    vae: Params


class Batch(NamedTuple):
    """Inputs of a batch of images on the host, one row each."""

    inputs: SamplingInputs
    seeds: UInt32[np.ndarray, " b"]
    numbers: Int32[np.ndarray, " b"]  # number of each image among those of its prompt and seed
    latents: Float[np.ndarray, "b h w 4"] | None  # initial latents, in place of the seeds' noise


class CompiledSampler:
    """Jitted functions over the parameters of all networks.

    Args:
        networks: The networks.
        params: Their parameters.
        mesh: Devices. The rows of a batch are sharded over them.
        schedule: Noise schedule of both UNets, with their prediction type.
    """

    def __init__(
        self,
        networks: Networks,
        params: ModelParams,
        mesh: Mesh,
        schedule: ScheduleConfig | None = None,
    ):
        self.params = params
        self.mesh = mesh
        self._dtype = networks.dtype
        rows: Any = sharding.batched(mesh)
        history: Any = NamedSharding(mesh, P(None, sharding.DATA_AXES))
        # One layout for every state, whether it is the first or returned by `_sample`: with two
        # layouts the sampler would be compiled twice.
        state = SolverState(rows, rows, history, rows, rows)
        jit = partial(jax.jit, compiler_options=compiler_options(mesh, networks.dtype))
        self._encode = jit(partial(_encode, networks))
        self._embed = jit(partial(_embed, networks))
        self._start = jit(
            partial(_start, networks),
            static_argnames=("height", "width", "reuses_features"),
            out_shardings=state,
        )
        self._continue = jit(
            partial(_continue, networks), static_argnames="reuses_features", out_shardings=state
        )
        self._sample = jit(
            partial(_sample, networks, mesh, schedule or ScheduleConfig()),
            static_argnames=("smoothing", "trace"),
            out_shardings=(state, None),
        )
        self._decode = jit(partial(_decode, networks, mesh))
        self._reconstruct = jit(partial(_reconstruct, networks, mesh))

    def generate(
        self,
        batch: Batch,
        steps: Steps,
        guidance_scale: float | Sequence[float],
        size: tuple[int, int],
        *,
        smoothing: Smoothing,
        trace: bool,
        on_part: Callable[[int, Trace | None], object] | None = None,
    ) -> tuple[Latents, Trace | None]:
        """Returns final latents, on the mesh, and the trace of all evaluations, on the host.

        Args:
            batch: Inputs of a multiple of the mesh's devices.
            steps: Table of the evaluations.
            guidance_scale: Guidance scale of both models, for all images or one for each.
            size: Height and width of the latents.
            smoothing: Smoothing of the saliency.
            trace: Whether to return a trace.
            on_part: Called after each dispatch of a few evaluations, with their number and their
                trace; what it raises ends sampling. All processes of the mesh pass one or none, as
                it decides which functions they run.
        """
        rows = sharding.batched(self.mesh)
        length = len(steps.stage)
        part_length = length if on_part is None else PART_ROWS
        table = pad_steps(steps, -(-length // part_length) * part_length)
        traces = []
        with pinned(self._dtype):
            contexts = self._encode(self.params, sharding.to_mesh(batch.inputs, rows))
            seeds, numbers = sharding.to_mesh((batch.seeds, batch.numbers), rows)
            # Without reuse the features are no part of the program.
            reuses = {"reuses_features": steps.reuses_features}
            if batch.latents is None:
                state = self._start(seeds, numbers, height=size[0], width=size[1], **reuses)
            else:
                latents = sharding.to_mesh(batch.latents, rows)
                state = self._continue(latents, seeds, numbers, **reuses)
            for first in range(0, length, part_length):
                part = jax.tree.map(lambda column, i=first: column[i : i + part_length], table)
                state, seen = self._sample(
                    self.params,
                    state,
                    contexts,
                    np.asarray(guidance_scale, np.float32),
                    part,
                    smoothing=smoothing,
                    trace=trace,
                )
                if on_part is not None:
                    jax.block_until_ready(state.x)
                    count = min(part_length, length - first)
                    seen = jax.tree.map(lambda rows, n=count: sharding.to_host(rows)[:n], seen)
                    on_part(count, seen)
                traces.append(seen)
        if not trace:
            return state.x, None
        if on_part is None:
            traces = [jax.tree.map(sharding.to_host, seen) for seen in traces]
        return state.x, jax.tree.map(lambda *parts: np.concatenate(parts)[:length], *traces)

    def decode(self, latents: Float[np.ndarray, "b h w 4"]) -> Float[np.ndarray, "b h2 w2 3"]:
        """Returns pixels in [0, 1] of scaled latents, a multiple of the mesh's devices."""
        with pinned(self._dtype):
            rows = sharding.to_mesh(latents, sharding.batched(self.mesh))
            return sharding.to_host(self._decode(self.params.vae, rows))

    def reconstruct(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
        """Returns pixels in [0, 1] of images through the VAE, a multiple of the mesh's devices."""
        with pinned(self._dtype):
            rows = sharding.to_mesh(images, sharding.batched(self.mesh))
            return sharding.to_host(self._reconstruct(self.params.vae, rows))

    def embed(self, pixels: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b d"]:
        """Returns embeddings of subject pixels, a multiple of the mesh's devices."""
        with pinned(self._dtype):
            rows = sharding.to_mesh(pixels, sharding.batched(self.mesh))
            embeds = self._embed(self.params.image_encoder, rows)
        return sharding.to_host(embeds).astype(np.float32)


def _encode(networks: Networks, params: ModelParams, inputs: SamplingInputs) -> Contexts:
    traced: Any = inputs  # arrays of JAX inside the jitted function
    return encode(
        networks.text_encoder.bind(params.text_encoder),
        networks.image_encoder.bind(params.image_encoder),
        networks.subject_fusion.bind(params.subject_fusion),
        input_ids=traced.input_ids,
        null_ids=traced.null_ids,
        pixels=traced.subject_pixels,
        index=traced.subject_token_index,
        has_subject=traced.has_subject,
        weights=traced.weights,
    )


def _embed(networks: Networks, params: Params, pixels: Float[Array, "b h w 3"]) -> Array:
    return networks.image_encoder.bind(params)(pixels)


def _start(
    networks: Networks,
    seeds: UInt32[Array, " b"],
    numbers: Int32[Array, " b"],
    *,
    height: int,
    width: int,
    reuses_features: bool = False,
) -> SolverState:
    noise = initial_noise(_keys(seeds, numbers), height, width)
    return _continue(networks, noise, seeds, numbers, reuses_features=reuses_features)


def _continue(
    networks: Networks,
    latents: Latents,
    seeds: UInt32[Array, " b"],
    numbers: Int32[Array, " b"],
    *,
    reuses_features: bool = False,
) -> SolverState:
    state = init_state(latents, _keys(seeds, numbers))
    if not reuses_features:
        return state
    unet = networks.unet.bind(networks.unet.abstract)
    features = unet.no_features(jnp.repeat(latents, 2, axis=0))
    return state._replace(features=(features, features))


def _keys(seeds: UInt32[Array, " b"], numbers: Int32[Array, " b"]) -> Key[Array, " b"]:
    return jax.vmap(lambda seed, number: jax.random.fold_in(seed_key(seed), number))(seeds, numbers)


def _sample(
    networks: Networks,
    mesh: Mesh,
    schedule: ScheduleConfig,
    params: ModelParams,
    state: SolverState,
    contexts: Contexts,
    guidance_scale: Float[Array, ""] | Float[Array, " b"],
    steps: Steps,
    *,
    smoothing: Smoothing,
    trace: bool,
) -> tuple[SolverState, Trace | None]:
    if guidance_scale.ndim:
        guidance_scale = guidance_scale[:, None, None, None]
    unets = networks.unet.bind(params.tdm), networks.unet.bind(params.sdm)
    if state.features is None:
        tdm, sdm = (guided(as_eps(unet, schedule), guidance_scale) for unet in unets)
    else:
        tdm, sdm = (guided_reusing(unet, schedule, guidance_scale) for unet in unets)
    with sharding.on_mesh(mesh):
        return sample(tdm, sdm, state, contexts, steps, smoothing=smoothing, trace=trace)


def _decode(networks: Networks, mesh: Mesh, params: Params, latents: Latents) -> Array:
    return to_unit(_in_turn(networks.vae.bind(params).decode, mesh, latents))


def _reconstruct(
    networks: Networks, mesh: Mesh, params: Params, images: UInt8[Array, "b h w 3"]
) -> Array:
    vae = networks.vae.bind(params)
    return to_unit(_in_turn(lambda image: vae.reconstruct(to_signed(image)), mesh, images))


def _in_turn(function: Callable[[Array], Array], mesh: Mesh, rows: Array) -> Array:
    """Maps one row per device at a time, so that memory does not grow with the batch."""
    in_turn = rows.reshape(mesh.size, -1, *rows.shape[1:]).swapaxes(0, 1)
    where = NamedSharding(mesh, P(None, sharding.DATA_AXES))
    in_turn = jax.lax.with_sharding_constraint(in_turn, where)
    with sharding.on_mesh(mesh):
        images = jax.lax.map(function, in_turn)
    return images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
