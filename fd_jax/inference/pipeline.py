"""Face-diffuser as users call it: from checkpoints, prompts and photographs to pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, SupportsFloat, SupportsIndex, get_args

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
from PIL import Image
from tqdm import tqdm

from fd_jax import sharding
from fd_jax.architecture import Architecture
from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints.flat_file import SDM_PARTS
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.sources import find_sources, load_models, read_sizes
from fd_jax.data.captions import Tokenizer, load_tokenizer
from fd_jax.data.photographs import Photograph
from fd_jax.errors import InputError
from fd_jax.inference import validation
from fd_jax.inference.compiled import Batch, CompiledSampler, ModelParams
from fd_jax.inference.inputs import make_inputs
from fd_jax.networks import Networks, make_networks
from fd_jax.ops.attention import AttentionKind
from fd_jax.ops.layers import as_dtype
from fd_jax.sampling.generate import Trace
from fd_jax.sampling.stages import SamplerConfig, Steps, make_steps
from fd_jax.schedule import ScheduleConfig

OutputType = Literal["pil", "np", "latents"]
Pictures = list[Image.Image] | np.ndarray


class SamplingTrace(NamedTuple):
    """What the models did at each of n evaluations, for b pictures.

    Attributes:
        steps: The table of the evaluations.
        tdm_saliency: A distribution over pixels; NaN where the TDM was not evaluated.
        sdm_saliency: The same of the SDM.
        sdm_weight: Share of the SDM in the noise: in the fusion stage the mask.
        x0: The latents that the noise predicts, for `FaceDiffuser.decode`.
    """

    steps: Steps
    tdm_saliency: Float[np.ndarray, "n b h w"]
    sdm_saliency: Float[np.ndarray, "n b h w"]
    sdm_weight: Float[np.ndarray, "n b h w"]
    x0: Float[np.ndarray, "n b h w 4"]


class FaceDiffuser:
    """Makes pictures of given people from prompts.

    Attributes:
        configs: Sizes of the networks.
        schedule: Noise schedule of both models.
        mesh: Devices. Pictures are divided over them, parameters are on all.
        dtype: Of the computation.
        left_behind: Names of tensors in the checkpoints that are no weights.
    """

    def __init__(
        self,
        networks: Networks,
        params: ModelParams,
        tokenizer: Tokenizer,
        configs: Architecture,
        schedule: ScheduleConfig,
        mesh: Mesh,
        left_behind: Sequence[str] = (),
    ):
        self.tokenizer, self.configs, self.schedule = tokenizer, configs, schedule
        self.mesh, self.left_behind, self.dtype = mesh, tuple(left_behind), networks.dtype
        self.programs = CompiledSampler(
            networks, params, mesh, prediction_type=schedule.prediction_type
        )

    @classmethod
    def from_pretrained(
        cls,
        *,
        sdm: str | os.PathLike | None = None,
        tdm: str | os.PathLike | None = None,
        base: str | os.PathLike | None = None,
        image_encoder: str | os.PathLike | None = None,
        dtype: DTypeLike | None = None,
        mesh: Mesh | None = None,
        attention: AttentionKind = "auto",
        progress: bool = False,
    ) -> "FaceDiffuser":
        """Reads checkpoints: the small models of the package if none are given.

        Args:
            sdm: The subject-augmented model: folder of a training run, of which the averaged
                parameters are read, or the released one, its file or the folder with
                `pytorch_model.bin` or `model.safetensors`. Gives text encoder, image encoder,
                subject fusion and the UNet that makes persons.
            tdm: The text-driven model, likewise. Gives the UNet that makes scenes.
            base: Folder of Stable Diffusion 1.5 in the layout of diffusers. Gives VAE, tokenizer,
                noise schedule, and the sizes of UNet and text encoder. Needed unless the SDM is a
                run, which has all of these but the tokenizer: then, as with a base without the
                folder `tokenizer`, it is CLIP's own.
            image_encoder: Folder of the CLIP (ViT-L/14) that the image encoder was tuned from.
                Gives its sizes. Needed unless the SDM is a run.
            dtype: `bfloat16` or `float32`, for all but norms, softmax and the solver; by default
                float32 on a CPU, else bfloat16.
            mesh: Devices, by default all of this process; see `fd_jax.sharding.make_mesh`.
            attention: How attention is computed, see `fd_jax.attention`.
            progress: Whether to show how far reading is.

        Raises:
            InputError: A config or weight is not what it should be, or one of the models is given
                without the other; the message names it.
            FileNotFoundError: The tokenizer lacks a file.
        """
        if dtype is None:
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        compute_dtype = as_dtype(dtype)
        sources = find_sources(sdm, tdm, base, image_encoder)
        configs, schedule = read_sizes(sources)
        own = None if sources.base is None else Path(sources.base, "tokenizer")
        tokenizer = load_tokenizer(TOKENIZER if own is None or not own.exists() else own)
        mesh = sharding.make_mesh(jax.local_devices()) if mesh is None else mesh
        networks = make_networks(configs, dtype=compute_dtype, attention=attention)
        abstract = {key: getattr(networks, key).abstract for key in SDM_PARTS}
        where = sharding.replicated(mesh)
        with tqdm(desc="reading weights", unit=" tensors", disable=not progress) as bar:
            placement = Placement(compute_dtype, lambda path, shape: where, bar.update)
            persons, scenes, vae, left = load_models(sources, abstract, placement)
        params = ModelParams(
            persons["text_encoder"],
            persons["image_encoder"],
            persons["subject_fusion"],
            sdm=persons["unet"],
            tdm=scenes,
            vae=vae,
        )
        return cls(networks, params, tokenizer, configs, schedule, mesh, left)

    def __call__(
        self,
        prompts: str | Sequence[str],
        references: Photograph | Sequence[Photograph] | Sequence[Sequence[Photograph]] = (),
        *,
        negative_prompt: str | Sequence[str] = "",
        num_images: SupportsIndex = 1,
        num_steps: SupportsIndex = 50,
        alpha: SupportsFloat = 0.3,
        beta: SupportsFloat = 0.6,
        fusion_start: SupportsIndex | None = None,
        fusion_end: SupportsIndex | None = None,
        guidance_scale: SupportsFloat = 5.0,
        solver: str = "ddim",
        seed: SupportsIndex | Sequence[SupportsIndex] = 0,
        height: SupportsIndex | None = None,
        width: SupportsIndex | None = None,
        subject_resolution: SupportsIndex | None = None,
        latents: Float[Array | np.ndarray, "..."] | None = None,
        output_type: OutputType | str = "pil",
        mode: str = "snf",
        sdm_weight: SupportsFloat = 0.5,
        smoothing: str = "box",
        batch_size: SupportsIndex | None = None,
        progress: bool = False,
        trace: bool = False,
    ) -> Pictures | tuple[Pictures, SamplingTrace]:
        """Makes pictures.

        Everything is checked before anything is computed. What changes only numbers (alpha, beta,
        borders, guidance, seed, prompts, photographs, mode) compiles nothing new.

        Args:
            prompts: A prompt such as `a man <|image|> reading`, or several.
            references: The photographs of the prompt, in the order of its markers: paths, PIL
                images or arrays. For several prompts a list of such lists.
            negative_prompt: What the TDM is guided away from; one for all prompts or one each.
            num_images: Pictures of each prompt.
            num_steps: Steps of the solver.
            alpha: Share of the steps after which the fusion stage begins.
            beta: Share of the steps after which the subject stage begins.
            fusion_start: First evaluation of the fusion stage, in place of alpha.
            fusion_end: First evaluation of the subject stage, in place of beta.
            guidance_scale: Of classifier-free guidance; 1 is none.
            solver: `ddim`, `pndm` or `dpmsolver++`.
            seed: 0..2**32 - 1; one for all prompts or one each. A picture follows from its seed,
                its number among the pictures of its prompt, prompt and photographs: not from the
                batch that it is in, nor from the devices.
            height: In pixels; by default what the models were trained for.
            width: In pixels.
            subject_resolution: Side to which photographs are resized first; by default what the
                image encoder takes, 224 of CLIP's. It resizes them again from any other.
            latents: Noise to begin with in place of the seed's, one row per picture.
            output_type: `pil`; `np`, [batch, height, width, 3] in 0..1; or `latents`.
            mode: `snf`; for comparison `weighted`, `delayed`, `tdm` or `sdm`.
            sdm_weight: The SDM's weight in mode `weighted`.
            smoothing: Of the saliency, `box` or `gaussian`.
            batch_size: Pictures made at a time, by default all. If fewer are wanted, the batch
                is filled up, so that the program is the same.
            progress: Whether to show how far sampling is; of several processes the first does.
            trace: Whether to return too what happened at every evaluation.

        Returns:
            All pictures, those of the first prompt first; with `trace` also the trace.

        Raises:
            InputError: An argument is not what it should be; the message names it.
        """
        settings = SamplerConfig(
            num_steps=validation.whole("num_steps", num_steps),
            alpha=validation.number("alpha", alpha),
            beta=validation.number("beta", beta),
            fusion_start=None
            if fusion_start is None
            else validation.whole("fusion_start", fusion_start, 0),
            fusion_end=None
            if fusion_end is None
            else validation.whole("fusion_end", fusion_end, 0),
            guidance_scale=validation.number("guidance_scale", guidance_scale),
            solver=solver,
            mode=mode,
            sdm_weight=validation.number("sdm_weight", sdm_weight),
            smoothing=smoothing,
        )
        steps = make_steps(settings, self.schedule)
        if output_type not in get_args(OutputType):
            raise InputError(
                f"output_type is {output_type!r}, expected one of {get_args(OutputType)}"
            )
        size = self.latent_size(height, width)
        prompts, references = validation.as_lists(prompts, references)
        count = len(prompts)
        num_images = validation.whole("num_images", num_images)
        total = count * num_images
        batch_size = total if batch_size is None else validation.whole("batch_size", batch_size)
        requests = make_inputs(
            self.tokenizer,
            prompts,
            references,
            validation.one_each("negative_prompt", negative_prompt, count),
            subject_resolution=self.subject_size(subject_resolution),
            max_length=self.configs.text_encoder.max_length,
            needs_subjects=mode != "tdm",
        )
        if latents is not None:
            latents = validation.check_latents(latents, (total, *size, 4))
        seeds = [
            validation.whole("seed", seed, 0, 2**32 - 1)
            for seed in validation.one_each("seed", seed, count)
        ]

        # Whole batches, each a multiple of the devices, so that one program makes them all. What
        # is too many repeats the last picture.
        batch_size = -(-batch_size // self.mesh.size) * self.mesh.size
        pictures = np.arange(-(-total // batch_size) * batch_size).clip(max=total - 1)
        batches = pictures.reshape(-1, batch_size)
        made, traces = [], []
        evaluations = len(steps.stage) * len(batches)
        is_silent = not progress or jax.process_index() != 0
        with tqdm(
            desc="sampling", total=evaluations, unit=" evaluations", disable=is_silent
        ) as bar:
            for rows in batches:
                prompt, number = np.divmod(rows, num_images)
                batch = Batch(
                    jax.tree.map(lambda column, prompt=prompt: column[prompt], requests),
                    np.array(seeds, np.uint32)[prompt],
                    number.astype(np.int32),
                    None if latents is None else latents[rows],
                )
                x, seen = self.programs.generate(
                    *(batch, steps, settings.guidance_scale, size, bar),
                    in_parts=progress,
                    smoothing=settings.smoothing,
                    trace=trace,
                )
                finished = x if output_type == "latents" else self.programs.decode(x)
                made.append(sharding.fetch(finished))
                traces.append(seen)
        result = np.concatenate(made)[:total]
        if not np.isfinite(result).all():
            broken = np.flatnonzero(~np.isfinite(result).all(axis=(1, 2, 3)))
            raise FloatingPointError(f"pictures {broken.tolist()} have values that are not finite")
        if output_type == "pil":
            result = [Image.fromarray(picture) for picture in to_uint8(result)]
        return (result, _join(traces, steps, total)) if trace else result

    def decode(self, latents: Float[np.ndarray, "b h w 4"]) -> Float[np.ndarray, "b h2 w2 3"]:
        """Returns the images, in 0..1, of scaled latents."""
        count = len(latents)
        padded = np.arange(-(-count // self.mesh.size) * self.mesh.size).clip(max=count - 1)
        latents = np.asarray(latents, np.float32)[padded]
        on_mesh = sharding.put(latents, sharding.batched(self.mesh))
        return sharding.fetch(self.programs.decode(on_mesh))[:count]

    def latent_size(
        self, height: SupportsIndex | None, width: SupportsIndex | None
    ) -> tuple[int, int]:
        """Returns height and width of the latents of a picture. Raises InputError."""
        scale = self.configs.vae.downscale
        unit = scale * self.configs.unet.downscale
        size = []
        for name, pixels in (("height", height), ("width", width)):
            pixels = self.configs.unet.sample_size * scale if pixels is None else pixels
            if validation.whole(name, pixels) % unit:
                raise InputError(f"{name} is {pixels}, expected a multiple of {unit}")
            size.append(int(pixels) // scale)
        return size[0], size[1]

    def subject_size(self, subject_resolution: SupportsIndex | None) -> int:
        """Returns the side of photographs as the networks get them. Raises InputError."""
        if subject_resolution is None:
            return self.configs.image_encoder.image_size
        return validation.whole("subject_resolution", subject_resolution)


def to_uint8(images: Float[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h w 3"]:
    """Returns images in 0..1 as 256 levels."""
    return np.round(images * 255).astype(np.uint8)


def _join(traces: list[Trace], steps: Steps, total: int) -> SamplingTrace:
    """Joins the traces of batches, and blanks what was not evaluated."""
    trace = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1)[:, :total], *traces)

    def blank(saliency: np.ndarray, is_used: np.ndarray) -> np.ndarray:
        return np.where(is_used[:, None, None, None], saliency, np.nan)

    return SamplingTrace(
        steps,
        blank(trace.tdm_saliency, steps.use_tdm),
        blank(trace.sdm_saliency, steps.use_sdm),
        trace.sdm_weight,
        trace.x0,
    )
