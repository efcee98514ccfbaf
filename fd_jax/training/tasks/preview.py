"""Preview images of fixed prompts, sampled by the one model that trains."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fd_jax import sharding
from fd_jax.compilation import compiler_options
from fd_jax.data.captions import SUBJECT_MARKER, Tokenizer
from fd_jax.data.photographs import load_photograph
from fd_jax.errors import InputError
from fd_jax.images.pixels import to_uint8, to_unit
from fd_jax.images.sheets import contact_sheet
from fd_jax.inference.inputs import SamplingInputs, make_inputs
from fd_jax.numerics import seed_key
from fd_jax.params import Flat
from fd_jax.sampling.generate import initial_noise, sample
from fd_jax.sampling.guidance import as_eps, guided, no_model
from fd_jax.sampling.solvers import init_state
from fd_jax.sampling.stages import Mode, SamplerConfig, make_steps
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import Task, gather_params
from fd_jax.types import Latents, Params

Contexts = Callable[[dict[str, Params], SamplingInputs], Float[Array, "3 b n d"]]


class PromptPreview:
    """Samples the images of the preview's prompts, always from the same noise.

    Args:
        task: The task, for its networks, architecture and schedule.
        contexts: Function that encodes prompts and subjects: contexts of no text, of the prompt,
            and of the prompt with its subjects.
        config: Gives prompts, references and sampler settings (`preview`) and sizes (`data`).
        tokenizer: CLIP tokenizer.
        mesh: Devices; each makes all images.
        mode: `tdm` samples as the TDM, `delayed` as the SDM by delayed conditioning.

    Raises:
        InputError: A prompt or a photograph cannot be used.
    """

    def __init__(
        self,
        task: Task,
        contexts: Contexts,
        config: TrainConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        mode: Mode,
    ):
        preview = config.preview
        self._task = task
        self._contexts = contexts
        self._mesh = mesh
        self._mode = mode
        self._prompts = preview.prompts
        self._guidance_scale = preview.guidance_scale
        self._references = assign_references(preview.prompts, preview.references)
        self._inputs = make_inputs(
            tokenizer,
            preview.prompts,
            self._references,
            [""] * len(preview.prompts),
            subject_resolution=config.data.subject_resolution,
            needs_subjects=False,
        )
        sampler = SamplerConfig(
            num_steps=preview.num_steps,
            guidance_scale=preview.guidance_scale,
            solver="dpmsolver++",
            mode=mode,
        )
        self._steps = make_steps(sampler, task.schedule)
        side = config.data.resolution // task.architecture.vae.downscale
        seeds = jnp.arange(len(preview.prompts), dtype=jnp.uint32)
        keys = jax.vmap(seed_key)(seeds)
        self._noise = np.asarray(initial_noise(keys, side, side))
        self._sample = jax.jit(
            self._sample_images,
            out_shardings=sharding.replicated(mesh),
            compiler_options=compiler_options(mesh, task.networks.dtype),
        )

    def __call__(self, trained: Flat, frozen: Flat) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a contact sheet of the images. All processes call it."""
        replicated = sharding.replicated(self._mesh)
        inputs, noise = sharding.to_mesh((self._inputs, self._noise), replicated)
        images = sharding.to_host(self._sample(trained, frozen, inputs, noise))
        shown = [[load_photograph(path) for path in row] for row in self._references]
        return contact_sheet(to_pixels(images), list(self._prompts), references=shown)

    def _sample_images(
        self, trained: Flat, frozen: Flat, inputs: SamplingInputs, noise: Latents
    ) -> Float[Array, "b h2 w2 3"]:
        networks = self._task.networks
        params = gather_params(trained, frozen, self._mesh, networks.dtype)
        contexts = self._contexts(params, inputs)
        unet = as_eps(networks.unet.bind(params["unet"]), self._task.schedule)
        model = guided(unet, jnp.float32(self._guidance_scale))
        tdm, sdm = (model, no_model) if self._mode == "tdm" else (no_model, model)
        state, _ = sample(tdm, sdm, init_state(noise), contexts, self._steps)
        decode = networks.vae.bind(params["vae"]).decode
        return jax.lax.map(decode, state.x[:, None])[:, 0]


def to_pixels(images: Float[np.ndarray, "b h w 3"]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns pixels in 0..255 of images in [-1, 1]; NaN becomes grey."""
    return list(to_uint8(to_unit(np.nan_to_num(images))))


def assign_references(prompts: Sequence[str], references: Sequence[Path]) -> list[list[str]]:
    """Gives each prompt as many references, in order, as it has markers.

    Raises:
        InputError: The numbers of references and markers differ.
    """
    counts = [prompt.count(SUBJECT_MARKER) for prompt in prompts]
    if sum(counts) != len(references):
        raise InputError(
            f"preview: {len(references)} references for {sum(counts)} markers {SUBJECT_MARKER} in "
            f"{len(prompts)} prompts, expected as many of each"
        )
    rest = iter(map(str, references))
    return [[next(rest) for _ in range(count)] for count in counts]
