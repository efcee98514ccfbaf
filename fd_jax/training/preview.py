"""Pictures of fixed prompts or photographs, to see how a run comes along."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fd_jax import sharding
from fd_jax.conditioning.encode import embed_subjects
from fd_jax.data.captions import SUBJECT_MARKER, Tokenizer
from fd_jax.data.photographs import load_photograph
from fd_jax.data.transforms import fit_image
from fd_jax.errors import InputError
from fd_jax.images.sheets import contact_sheet
from fd_jax.inference.inputs import SamplingInputs, make_inputs
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.sampling.generate import initial_noise, sample
from fd_jax.sampling.guidance import as_eps, guided, no_model
from fd_jax.sampling.solvers import init_state
from fd_jax.sampling.stages import SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import PreviewConfig
from fd_jax.training.objective import Kind
from fd_jax.training.step import bind
from fd_jax.types import Images, Latents


class Preview:
    """Makes the pictures. The one model that trains makes them alone.

    Args:
        config: Prompts and their photographs.
        networks: The networks.
        schedule: The noise schedule.
        tokenizer: CLIP's.
        mesh: Devices, each of which makes all pictures.
        kind: A tdm makes scenes from text; an sdm persons by delayed conditioning, as
            FastComposer's.
        size: Height and width of the latents.
        subject_resolution: Side of the subjects' pixels.

    Raises:
        InputError: A prompt or a photograph cannot be used.
    """

    def __init__(
        self,
        config: PreviewConfig,
        networks: Networks,
        schedule: ScheduleConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        kind: Kind,
        size: tuple[int, int],
        subject_resolution: int,
    ):
        self.config, self._mesh, self._networks, self._kind = config, mesh, networks, kind
        self._references = _deal(config.prompts, config.references)
        self._requests = make_inputs(
            tokenizer,
            config.prompts,
            self._references,
            [""] * len(config.prompts),
            subject_resolution=subject_resolution,
            needs_subjects=False,
        )
        settings = SamplerConfig(
            num_steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            solver="dpmsolver++",
            mode="tdm" if kind == "tdm" else "delayed",
        )
        self._steps = make_steps(settings, schedule)
        self._schedule = schedule
        keys = jax.vmap(jax.random.key)(jnp.arange(len(config.prompts), dtype=jnp.uint32))
        self._noise = np.asarray(initial_noise(keys, *size))
        self._make = jax.jit(self._pictures, out_shardings=sharding.replicated(mesh))

    def __call__(self, trained: Flat, frozen: Flat) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a sheet of the pictures that a model makes. All processes call it."""
        where = sharding.replicated(self._mesh)
        inputs = sharding.to_mesh((self._requests, self._noise), where)
        images = sharding.to_host(self._make(trained, frozen, *inputs))
        shown = [[load_photograph(path) for path in row] for row in self._references]
        return contact_sheet(_levels(images), list(self.config.prompts), references=shown)

    def _pictures(
        self, trained: Flat, frozen: Flat, requests: SamplingInputs, noise: Latents
    ) -> Float[Array, "b h2 w2 3"]:
        networks = self._networks
        model = bind(trained, frozen, self._mesh, networks.dtype)
        encode = networks.text_encoder.bind(model["text_encoder"])
        text = encode(requests.input_ids)
        augmented = text
        if self._kind == "sdm":
            encoder = networks.image_encoder.bind(model["image_encoder"])
            fusion = networks.subject_fusion.bind(model["subject_fusion"])
            subjects = embed_subjects(encoder, requests.subject_pixels)
            augmented = fusion(text, subjects, requests.subject_token_index, requests.has_subject)
        contexts = jnp.stack([encode(requests.null_ids), text, augmented])
        unet = as_eps(networks.unet.bind(model["unet"]), self._schedule)
        unet = guided(unet, jnp.float32(self.config.guidance_scale))
        tdm, sdm = (unet, no_model) if self._kind == "tdm" else (no_model, unet)
        state, _ = sample(tdm, sdm, init_state(noise), contexts, self._steps)
        return jax.lax.map(networks.vae.bind(model["vae"]).decode, state.x[:, None])[:, 0]


class Reconstructions:
    """Makes photographs again by the autoencoder that trains alone.

    Args:
        config: The photographs, as references.
        networks: The networks.
        mesh: Devices, each of which makes all pictures.
        resolution: Side of the images.

    Raises:
        InputError: A photograph cannot be used.
    """

    def __init__(self, config: PreviewConfig, networks: Networks, mesh: Mesh, resolution: int):
        self._mesh, self._networks = mesh, networks
        self._labels = [path.name for path in config.references]
        photographs = [load_photograph(path) for path in config.references]
        self._photographs = np.stack([fit_image(pixels, resolution) for pixels in photographs])
        self._make = jax.jit(self._pictures, out_shardings=sharding.replicated(mesh))

    def __call__(self, trained: Flat, frozen: Flat) -> UInt8[np.ndarray, "height width 3"]:
        """Returns a sheet of the photographs, each at the left of what it becomes."""
        inputs = sharding.to_mesh(self._photographs, sharding.replicated(self._mesh))
        made = _levels(sharding.to_host(self._make(trained, frozen, inputs)))
        return contact_sheet(
            [np.hstack(pair) for pair in zip(self._photographs, made, strict=True)], self._labels
        )

    def _pictures(
        self, trained: Flat, frozen: Flat, photographs: UInt8[Array, "b h w 3"]
    ) -> Images:
        networks = self._networks
        vae = networks.vae.bind(bind(trained, frozen, self._mesh, networks.dtype)["vae"])
        mean = vae.encode(photographs.astype(jnp.float32) / 127.5 - 1).mean
        return vae.decode(mean * vae.config.scaling_factor)


def _levels(images: Float[np.ndarray, "b h w 3"]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """Returns pictures of images in [-1, 1]; what is no number is grey."""
    return list(np.round(np.clip(np.nan_to_num(images) / 2 + 0.5, 0, 1) * 255).astype(np.uint8))


def _deal(prompts: tuple[str, ...], references: tuple[Path, ...]) -> list[list[str]]:
    """Gives each prompt as many of the photographs as it has markers."""
    counts = [prompt.count(SUBJECT_MARKER) for prompt in prompts]
    if sum(counts) != len(references):
        raise InputError(
            f"preview: {len(references)} references for {sum(counts)} markers {SUBJECT_MARKER} in "
            f"{len(prompts)} prompts, expected as many of each"
        )
    left = iter(map(str, references))
    return [[next(left) for _ in range(count)] for count in counts]
