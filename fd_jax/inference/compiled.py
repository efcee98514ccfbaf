"""The compiled programs of sampling, laid over a mesh: encode, generate, decode."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int32, PyTree, UInt32
from tqdm import tqdm

from fd_jax import sharding
from fd_jax.conditioning.encode import encode
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.networks import Networks
from fd_jax.sampling.generate import Contexts, Trace, initial_noise, sample
from fd_jax.sampling.noise_fusion import Smoothing
from fd_jax.sampling.solvers import SolverState, init_state
from fd_jax.sampling.stages import Steps, pad_steps
from fd_jax.types import Latents, Params

# Rows per dispatch while progress is shown: the same program for any number of steps. Without
# progress all rows are one dispatch. A callback out of the scan would show progress too, but
# programs with callbacks are not kept in the compile cache.
_PROGRESS_ROWS = 5


class ModelParams(NamedTuple):
    """Parameters of all networks, on the mesh."""

    text_encoder: Params
    image_encoder: Params
    subject_fusion: Params
    sdm: Params
    tdm: Params
    vae: Params


class Batch(NamedTuple):
    """One row per image, on the host."""

    requests: SamplingInputs
    seeds: UInt32[np.ndarray, " b"]
    numbers: Int32[np.ndarray, " b"]  # of an image among those of its prompt
    latents: Float[np.ndarray, "b h w 4"] | None  # to begin with, in place of the seeds' noise


class CompiledSampler:
    """Compiled functions over the parameters of all networks.

    Args:
        networks: The networks.
        params: Their parameters.
        mesh: Devices. The rows of a batch are divided over them.
        prediction_type: What the UNets predict, see `ScheduleConfig`.
    """

    def __init__(
        self,
        networks: Networks,
        params: ModelParams,
        mesh: Mesh,
        *,
        prediction_type: str = "epsilon",
    ):
        self.params, self.mesh = params, mesh
        # On GPU and TPU float32 products are shortened unless told otherwise.
        self._precision = "float32" if networks.dtype == jnp.float32 else None
        rows = sharding.batched(mesh)
        # The sampler's state is laid out alike whoever made it, or the sampler would be compiled
        # again where it goes on from its own.
        state = SolverState(rows, rows, NamedSharding(mesh, P(None, sharding.DATA_AXES)))
        self._encode = jax.jit(partial(_encode, networks))
        self._start = jax.jit(_start, static_argnames=("height", "width"), out_shardings=state)
        self._continue = jax.jit(init_state, out_shardings=state)
        self._sample = jax.jit(
            partial(_sample, networks, mesh, prediction_type),
            static_argnames=("smoothing", "trace"),
            out_shardings=(state, None),
        )
        self._decode = jax.jit(partial(_decode, networks, mesh))

    def generate(
        self,
        batch: Batch,
        steps: Steps,
        guidance_scale: float,
        size: tuple[int, int],
        bar: tqdm,
        *,
        in_parts: bool,
        smoothing: Smoothing,
        trace: bool,
    ) -> tuple[Latents, Trace | None]:
        """Returns final latents, on the mesh, and the trace of all rows, on the host.

        Args:
            batch: A multiple of the mesh's devices.
            steps: The table.
            guidance_scale: Of both models.
            size: Height and width of the latents.
            bar: Advanced by rows, if they run in parts.
            in_parts: Whether to dispatch a few rows at a time. The same on all processes of the
                mesh, which must run the same programs, though one alone shows the bar.
            smoothing: Of the saliency.
            trace: Whether to return a trace.
        """
        where = sharding.batched(self.mesh)
        with jax.default_matmul_precision(self._precision):
            contexts = self._encode(self.params, sharding.put(batch.requests, where))
            if batch.latents is None:
                seeds, numbers = sharding.put((batch.seeds, batch.numbers), where)
                state = self._start(seeds, numbers, height=size[0], width=size[1])
            else:
                state = self._continue(sharding.put(batch.latents, where))
            length = len(steps.stage)
            rows = _PROGRESS_ROWS if in_parts else length
            table = pad_steps(steps, -(-length // rows) * rows)
            traces = []
            for first in range(0, length, rows):
                part = jax.tree.map(lambda column, i=first: column[i : i + rows], table)
                state, seen = self._sample(
                    *(self.params, state, contexts, np.float32(guidance_scale), part),
                    smoothing=smoothing,
                    trace=trace,
                )
                traces.append(seen)
                if in_parts:
                    jax.block_until_ready(state.x)
                    bar.update(min(rows, length - first))
        if not trace:
            return state.x, None
        traces = [jax.tree.map(sharding.fetch, seen) for seen in traces]
        return state.x, jax.tree.map(lambda *parts: np.concatenate(parts)[:length], *traces)

    def decode(self, latents: Latents) -> Float[Array, "b h2 w2 3"]:
        """Returns images in 0..1, on the mesh, of scaled latents on the mesh."""
        with jax.default_matmul_precision(self._precision):
            return self._decode(self.params.vae, latents)


def _encode(networks: Networks, params: ModelParams, requests: SamplingInputs) -> Contexts:
    return encode(
        networks.text_encoder.bind(params.text_encoder),
        networks.image_encoder.bind(params.image_encoder),
        networks.subject_fusion.bind(params.subject_fusion),
        *requests,
    )


def _start(
    seeds: UInt32[Array, " b"], numbers: Int32[Array, " b"], *, height: int, width: int
) -> SolverState:
    keys = jax.vmap(lambda seed, number: jax.random.fold_in(jax.random.key(seed), number))
    return init_state(initial_noise(keys(seeds, numbers), height, width))


def _sample(
    networks: Networks,
    mesh: Mesh,
    prediction_type: str,
    params: ModelParams,
    state: SolverState,
    contexts: Contexts,
    guidance_scale: Float[Array, ""],
    steps: Steps,
    **static: PyTree,
) -> tuple[SolverState, Trace | None]:
    tdm, sdm = networks.unet.bind(params.tdm), networks.unet.bind(params.sdm)
    with sharding.on_mesh(mesh):
        return sample(
            *(tdm, sdm, state, contexts, guidance_scale, steps),
            prediction_type=prediction_type,
            **static,
        )


def _decode(networks: Networks, mesh: Mesh, params: Params, latents: Latents) -> Array:
    """Decodes one image per device at a time, so that memory does not grow with the batch."""
    vae = networks.vae.bind(params)
    in_turn = latents.reshape(mesh.size, -1, *latents.shape[1:]).swapaxes(0, 1)
    where = NamedSharding(mesh, P(None, sharding.DATA_AXES))
    in_turn = jax.lax.with_sharding_constraint(in_turn, where)
    with sharding.on_mesh(mesh):
        images = jax.lax.map(vae.decode, in_turn)
    images = images.swapaxes(0, 1).reshape(-1, *images.shape[2:])
    return jnp.clip(images / 2 + 0.5, 0, 1)
