"""The subject-augmented model (SDM): persons, given captions and photographs."""

from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fd_jax.architecture import Architecture
from fd_jax.conditioning.encode import augment
from fd_jax.config import nearest
from fd_jax.data.captions import Tokenizer
from fd_jax.errors import InputError
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.losses.denoising import latent_diffusion_loss, loss_mask
from fd_jax.losses.localization import localization_loss
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import (
    Draws,
    Inputs,
    Metrics,
    Preview,
    Task,
    autoencoder_losses,
    encode_posterior,
    sample_posterior,
)
from fd_jax.training.tasks.preview import PromptPreview
from fd_jax.types import Context, Params


class Sdm(Task):
    """Denoises images given captions whose words for persons are augmented by photographs.

    Loss of arXiv:2311.10329: the denoising loss, in some batches within the subjects' masks alone,
    and the localization loss.
    """

    parts = ("unet", "vae", "text_encoder", "image_encoder", "subject_fusion")
    frozen_if_given = ("vae",)  # TDM and SDM sample together only if they share it
    needs_images = False

    @classmethod
    def check(cls, config: TrainConfig, architecture: Architecture) -> None:
        """Raises InputError without room for subjects, or where a loss does not fit."""
        if config.data.max_subjects < 1:
            raise InputError("data.max_subjects is 0, expected at least 1 for an sdm")
        if config.objective.localization_weight > 0:
            check_levels(config.objective.localization_levels, architecture.unet.attending_levels)

    def loss(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        objective = self.objective
        vae = self.networks.vae.bind(params["vae"])
        posterior = encode_posterior(vae, inputs)
        latents = sample_posterior(posterior, draws) * vae.config.scaling_factor
        text = self.encode_text(params, inputs)
        context = self._augment(params, text, inputs)
        localizes = objective.localization_weight > 0
        denoising, maps = latent_diffusion_loss(
            self.networks.unet.bind(params["unet"]),
            latents,
            context,
            draws.t,
            draws.noise,
            self.schedule,
            mask=self._mask(inputs, draws, latents.shape[1:3]),
            min_snr_gamma=objective.min_snr_gamma,
            map_levels=objective.localization_levels if localizes else (),
        )
        losses = {"denoising_loss": denoising}
        if localizes:
            losses["localization_loss"] = localization_loss(
                maps, inputs.subject_masks, inputs.subject_token_index, inputs.has_subject
            )
        if self.trains_vae:
            losses |= autoencoder_losses(vae, posterior, latents, inputs.images)
        return self.total(losses)

    def preview(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> Preview | None:
        """Returns what makes persons of the preview's prompts, by delayed conditioning."""
        if not config.preview.prompts:
            return None
        return PromptPreview(self, self._contexts, config, tokenizer, mesh, mode="delayed")

    def _augment(self, params: dict[str, Params], text: Context, inputs: Any) -> Context:
        """Returns the context whose words for persons are augmented by photographs.

        Args:
            params: Parameters by part.
            text: Text embeddings.
            inputs: `Inputs` or `SamplingInputs`.
        """
        encoder = self.networks.image_encoder.bind(params["image_encoder"])
        fusion = self.networks.subject_fusion.bind(params["subject_fusion"])
        traced: Any = inputs  # arrays of JAX inside the jitted function
        return augment(
            encoder,
            fusion,
            text,
            traced.subject_pixels,
            traced.subject_token_index,
            traced.has_subject,
        )

    def _mask(self, inputs: Inputs, draws: Draws, size: tuple[int, int]) -> Float[Array, "b h w 1"]:
        """Returns the weight of each latent pixel: of the subjects alone where drawn so."""
        mask = loss_mask(inputs.subject_masks, inputs.has_subject, size, self.objective.absent)
        return jnp.where(draws.use_mask, mask, 1.0)

    def _contexts(
        self, params: dict[str, Params], inputs: SamplingInputs
    ) -> Float[Array, "3 b n d"]:
        """Returns the contexts of no text, of the prompt, and of the prompt with its subjects."""
        encode = self.networks.text_encoder.bind(params["text_encoder"])
        text = encode(inputs.input_ids)
        augmented = self._augment(params, text, inputs)
        return jnp.stack([encode(inputs.null_ids), text, augmented])


def check_levels(levels: tuple[str, ...], attending: tuple[str, ...]) -> None:
    """Raises InputError if the localization loss asks for a level without cross-attention."""
    for name in levels:
        if name not in attending:
            raise InputError(
                f"localization_levels has {name!r}, expected some of {attending}"
                f"{nearest(name, attending)}"
            )
    if not levels:
        raise InputError("localization_levels is empty, expected some, or localization_weight 0")
