"""The pipeline as users call it: from checkpoints, prompts and photographs to images."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from fd_jax import sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.merge import find_tokenizer, merge
from fd_jax.data.captions import Tokenizer, load_tokenizer
from fd_jax.data.photographs import Photograph, load_photograph, subject_pixels
from fd_jax.errors import InputError
from fd_jax.inference import validation
from fd_jax.inference.compiled import Batch, CompiledSampler, ModelParams
from fd_jax.inference.inputs import ImageKey, Person, SamplingInputs, make_inputs
from fd_jax.inference.samples import Samples, join_samples
from fd_jax.inference.sources import LoraOn, load_models, open_loras, open_sources
from fd_jax.inference.tables import Part, Tables
from fd_jax.networks import Networks, make_networks
from fd_jax.ops.attention import AttentionKind
from fd_jax.ops.layers import as_dtype
from fd_jax.sampling.stages import Mode, SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig

_DEFAULTS = SamplerConfig()


class FaceDiffuser:
    """Samples images of given people from prompts.

    Attributes:
        tokenizer: CLIP tokenizer of the prompts.
        architecture: Configs of the networks.
        schedule: Noise schedule of both models.
        mesh: Devices. Batches are sharded over them, parameters are replicated.
        dtype: Dtype of the computation.
        ignored_tensors: Names of tensors in the checkpoints that are no weights.
        compiled: Jitted functions over the parameters.
    """

    def __init__(
        self,
        networks: Networks,
        params: ModelParams,
        tokenizer: Tokenizer,
        architecture: Architecture,
        schedule: ScheduleConfig,
        mesh: Mesh,
        ignored_tensors: Sequence[str] = (),
    ):
        self.tokenizer = tokenizer
        self.architecture = architecture
        self.schedule = schedule
        self.mesh = mesh
        self.dtype = networks.dtype
        self.ignored_tensors = tuple(ignored_tensors)
        self.compiled = CompiledSampler(networks, params, mesh, schedule)

    @classmethod
    def from_pretrained(
        cls,
        *,
        sdm: str | os.PathLike | None = None,
        tdm: str | os.PathLike | None = None,
        base: str | os.PathLike | None = None,
        image_encoder: str | os.PathLike | None = None,
        loras: Sequence[str | os.PathLike] = (),
        lora_on: LoraOn | Sequence[LoraOn] = "both",
        dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        attention: AttentionKind = "auto",
        progress: bool = False,
    ) -> "FaceDiffuser":
        """Reads checkpoints; without any, the small models of the package.

        Args:
            sdm: Subject-augmented model: folder of a training run, whose EMA parameters are read;
                or the released model's file, or its folder. Gives text encoder, image encoder,
                subject fusion and the UNet that makes persons.
            tdm: Text-driven model, likewise, or any Stable Diffusion 1.5 or UNet of one. Gives
                the UNet that makes scenes.
            base: Stable Diffusion 1.5, a folder of diffusers or a single file. Gives VAE,
                tokenizer (CLIP's own if it has none), noise schedule, and the configs of UNet and
                text encoder. Needed unless the SDM is a run, which has all but the tokenizer.
            image_encoder: Folder of the CLIP (ViT-L/14) that the image encoder was tuned from.
                Gives its config. Needed unless the SDM is a run.
            loras: LoRAs to merge, each FILE or FILE:SCALE.
            lora_on: Models that the LoRAs change, one for all or one each. The text encoder is
                the SDM's, so that a LoRA on the TDM alone does not change it.
            dtype: `bfloat16` or `float32`, for all but norms, softmax and the solver; by default
                float32 on a CPU, else bfloat16.
            mesh: Devices, by default all of this process; see `fd_jax.sharding.make_mesh`.
            attention: Implementation of attention, see `fd_jax.ops.attention`.
            progress: Whether to show a progress bar of reading.

        Raises:
            InputError: A config or weight cannot be used, or one of the models is given without
                the other; the message names it.
            FileNotFoundError: The tokenizer lacks a file.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        compute_dtype = as_dtype(dtype)
        sources = open_sources(sdm, tdm, base, image_encoder)
        architecture, schedule = merge(sources.given(), needed=Architecture._fields)
        tokenizer = load_tokenizer(find_tokenizer(sources.given()))
        mesh = sharding.make_mesh(jax.local_devices()) if mesh is None else mesh
        networks = make_networks(architecture, dtype=compute_dtype, attention=attention)
        changes = open_loras(loras, [lora_on] if isinstance(lora_on, str) else lora_on)
        params, ignored = load_models(sources, networks, mesh, loras=changes, progress=progress)
        return cls(networks, params, tokenizer, architecture, schedule, mesh, ignored)

    def __call__(
        self,
        prompts: str | Iterable[str],
        references: Photograph | Iterable[Any] | None = (),
        *,
        sampler: SamplerConfig = _DEFAULTS,
        negative_prompt: str | Iterable[str] = "",
        num_images: SupportsIndex = 1,
        seed: SupportsIndex | Iterable[SupportsIndex] = 0,
        height: SupportsIndex | None = None,
        width: SupportsIndex | None = None,
        subject_resolution: SupportsIndex | None = None,
        crop_references: bool | None = None,
        latents: Float[Array | np.ndarray, "..."] | None = None,
        batch_size: SupportsIndex | None = None,
        progress: bool = False,
        trace: bool = False,
        **sampler_fields: Any,
    ) -> Samples:
        """Samples images of prompts.

        All arguments are checked before anything is computed. Numbers (alpha, beta, borders,
        guidance, seeds), prompts, photographs and modes compile nothing new.

        Args:
            prompts: A prompt such as `a man <|image|> reading`, or several.
            references: Photographs of the prompt, in the order of its markers: paths, bytes, PIL
                images or arrays; or lists of several of one person, whose embeddings are averaged.
                For several prompts a list of such lists.
            sampler: Solver, stages and guidance.
            negative_prompt: Prompt to guide the TDM away from; one for all prompts, or one each.
            num_images: Number of images of each prompt.
            seed: 0..2**32 - 1; one for all prompts, or one each. An image follows from its seed,
                its number among the images of its prompt, the prompt and the photographs, not
                from its batch or the devices.
            height: Height of the images in pixels; by default that of the models' training.
            width: Width, likewise.
            subject_resolution: Side that photographs are resized to, by default the encoder's.
            crop_references: Whether photographs are cut to head and shoulders and freed of their
                background; by default those that are not so already, if OpenCV is installed.
            latents: Initial noise in place of the seed's, [b, h, w, 4], one row per image.
            batch_size: Number of images sampled at a time, by default all.
            progress: Whether to show a progress bar; of several processes the first does.
            trace: Whether to return a trace of all evaluations.
            **sampler_fields: Fields of `SamplerConfig`, such as `num_steps=20`. They replace those
                of `sampler`.

        Returns:
            All images, those of the first prompt first.

        Raises:
            InputError: An argument cannot be used; the message names it.
        """
        names = FaceDiffuser.__call__.__annotations__
        sampler = validation.merge_sampler(sampler, sampler_fields, names)
        make_steps(sampler, self.schedule)
        size = self.latent_size(height, width)
        prompts, references = validation.prompts_and_references(prompts, references)
        num_images = validation.whole("num_images", num_images)
        total = len(prompts) * num_images
        batch_size = total if batch_size is None else validation.whole("batch_size", batch_size)
        negative_prompts = validation.one_each("negative_prompt", negative_prompt, len(prompts))
        if any(negative_prompts) and not validation.guides_away(sampler):
            warnings.warn("negative_prompt has no effect with this sampler", stacklevel=2)
        inputs = self.make_inputs(
            prompts,
            references,
            negative_prompts,
            subject_resolution=subject_resolution,
            mode=sampler.mode,
            crop_references=validation.optional_bool("crop_references", crop_references),
        )
        if latents is not None:
            latents = validation.check_latents(latents, (total, *size, 4))
        seeds = validation.seeds(seed, len(prompts))
        images = [ImageKey(row, s, n) for row, s in enumerate(seeds) for n in range(num_images)]
        parts = self.sample_batches(
            inputs,
            images,
            sampler=sampler,
            size=size,
            batch_size=batch_size,
            latents=latents,
            progress=progress,
            trace=trace,
        )
        return join_samples(list(parts), partial(self.decode, batch_size=batch_size))

    def make_inputs(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Person]],
        negative_prompts: Sequence[str],
        *,
        subject_resolution: SupportsIndex | None = None,
        mode: Mode = "snf",
        warn: Callable[[str], object] = warnings.warn,
        crop_references: bool | None = None,
    ) -> SamplingInputs:
        """Returns the inputs of prompts, a row each, for `sample_batches`. Raises InputError."""
        return make_inputs(
            self.tokenizer,
            prompts,
            references,
            negative_prompts,
            subject_resolution=self.subject_size(subject_resolution),
            max_length=self.architecture.text_encoder.max_length,
            needs_subjects=mode != "tdm",
            warn=warn,
            crop_references=crop_references,
        )

    def sample_batches(
        self,
        inputs: SamplingInputs,
        images: Sequence[ImageKey],
        *,
        sampler: SamplerConfig | Sequence[SamplerConfig],
        size: tuple[int, int],
        batch_size: int,
        latents: Float[np.ndarray, "b h w 4"] | None = None,
        progress: bool = False,
        trace: bool = False,
        on_part: Callable[[Part], object] | None = None,
    ) -> Iterator[Samples]:
        """Yields the samples of a batch at a time; memory does not grow with their number.

        Args:
            inputs: Inputs of the prompts.
            images: The images to sample, in this order.
            sampler: Sampler of all images, or one for each (see `Tables`).
            size: Height and width of the latents.
            batch_size: Number of images in a batch, rounded up to a multiple of the devices.
            latents: Initial noise in place of the seeds', one row per image.
            progress: Whether to show a progress bar.
            trace: Whether to return a trace of all evaluations.
            on_part: Called after every few evaluations of a batch, with their trace if one is
                wanted. What it raises ends sampling, and comes out of the iterator.
        """
        tables = Tables(sampler, self.schedule)
        listeners = [] if on_part is None else [on_part]
        keys = np.array(images, np.int64).reshape(-1, len(ImageKey._fields))
        prompt, seeds, numbers = keys.T
        batches = sharding.whole_batches(len(images), batch_size, self.mesh)
        is_silent = not progress or jax.process_index() != 0
        total = sum(len(tables.of(rows).steps.stage) for rows in batches)
        with tqdm(desc="sampling", total=total, unit=" evaluations", disable=is_silent) as bar:
            if progress:
                listeners.append(lambda part: bar.update(part.done - part.first))
            for rows in batches:
                table = tables.of(rows)
                count = min(len(rows), len(images) - int(rows[0]))
                x, seen = self.compiled.generate(
                    Batch(
                        jax.tree.map(lambda column, rows=rows: column[prompt[rows]], inputs),
                        seeds[rows].astype(np.uint32),
                        numbers[rows].astype(np.int32),
                        None if latents is None else latents[rows],
                    ),
                    table.steps,
                    table.guidance_scale,
                    size,
                    smoothing=table.smoothing,
                    trace=trace,
                    on_part=table.followed_by(listeners, count),
                )
                yield Samples(
                    sharding.to_host(x)[:count],
                    partial(self.decode, batch_size=batch_size),
                    None if seen is None else table.trace(seen, count),
                )

    def decode(
        self, latents: Float[np.ndarray, "b h w 4"], *, batch_size: int | None = None
    ) -> Float[np.ndarray, "b h2 w2 3"]:
        """Returns the images of scaled latents, [b, H, W, 3] float32 in [0, 1].

        Args:
            latents: Scaled latents.
            batch_size: Number of images decoded at a time, by default all.
        """
        latents = np.asarray(latents, np.float32)
        batches = sharding.whole_batches(len(latents), batch_size or len(latents), self.mesh)
        pixels = [self.compiled.decode(latents[rows]) for rows in batches]
        return np.concatenate(pixels)[: len(latents)]

    def reconstruct(self, images: UInt8[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
        """Encodes images and decodes them, which bounds the quality of what the UNets can make.

        Args:
            images: One or more RGB images; height and width are multiples of the VAE's downscale.

        Returns:
            Images, [b, H, W, 3] float32 in [0, 1].
        """
        [rows] = sharding.whole_batches(len(images), len(images), self.mesh)
        return self.compiled.reconstruct(images[rows])[: len(images)]

    def embed(
        self, photographs: Sequence[Photograph], *, batch_size: int = 64
    ) -> Float[np.ndarray, "b d"]:
        """Returns the image encoder's embeddings of photographs, [b, d] float32.

        Args:
            photographs: Paths, bytes, PIL images or arrays.
            batch_size: Photographs at a time.

        Raises:
            InputError: A photograph cannot be used.
        """
        photographs = validation.as_list("photographs", photographs, "photographs")
        if not photographs:
            raise InputError("there are no photographs, expected at least one")
        side = self.architecture.image_encoder.image_size
        embeds = []
        for rows in sharding.whole_batches(len(photographs), batch_size, self.mesh):
            count = min(len(rows), len(photographs) - int(rows[0]))
            chosen = [load_photograph(photographs[i]) for i in rows[:count]]
            pixels = np.stack([subject_pixels(photograph, side) for photograph in chosen])
            embeds.append(self.compiled.embed(pixels[rows - rows[0]])[:count])
        return np.concatenate(embeds)

    def latent_size(
        self, height: SupportsIndex | None, width: SupportsIndex | None
    ) -> tuple[int, int]:
        """Returns height and width of an image's latents. Raises InputError."""
        scale = self.architecture.vae.downscale
        unit = scale * self.architecture.unet.downscale
        size = []
        for name, pixels in (("height", height), ("width", width)):
            pixels = self.architecture.unet.sample_size * scale if pixels is None else pixels
            if validation.whole(name, pixels) % unit:
                raise InputError(f"{name} is {pixels}, expected a multiple of {unit}")
            size.append(int(pixels) // scale)
        return size[0], size[1]

    def subject_size(self, subject_resolution: SupportsIndex | None) -> int:
        """Returns the side of the subjects' pixels. Raises InputError."""
        if subject_resolution is None:
            return self.architecture.image_encoder.image_size
        return validation.whole("subject_resolution", subject_resolution)
