"""The text-driven model (TDM): images given their captions."""

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fd_jax.architecture import Architecture
from fd_jax.data.captions import Tokenizer
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.losses.denoising import latent_diffusion_loss
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import (
    SUBJECT_OBJECTIVE,
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
from fd_jax.types import Params


class Tdm(Task):
    """Denoises images given their captions. Keeps scenes; knows no subjects."""

    parts = ("unet", "vae", "text_encoder")
    frozen_if_given = ("vae",)  # TDM and SDM sample together only if they share it
    unused_objective = SUBJECT_OBJECTIVE
    needs_images = False

    @classmethod
    def check(cls, config: TrainConfig, architecture: Architecture) -> None:
        """Accepts all settings."""

    def loss(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        vae = self.networks.vae.bind(params["vae"])
        posterior = encode_posterior(vae, inputs)
        latents = sample_posterior(posterior, draws) * vae.config.scaling_factor
        text = self.encode_text(params, inputs)
        denoising, _ = latent_diffusion_loss(
            self.networks.unet.bind(params["unet"]),
            latents,
            text,
            draws.t,
            draws.noise,
            self.schedule,
            min_snr_gamma=self.objective.min_snr_gamma,
        )
        losses = {"denoising_loss": denoising}
        if self.trains_vae:
            losses |= autoencoder_losses(vae, posterior, latents, inputs.images)
        return self.total(losses)

    def preview(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> Preview | None:
        """Returns what makes scenes of the preview's prompts."""
        if not config.preview.prompts:
            return None
        return PromptPreview(self, self._contexts, config, tokenizer, mesh, mode="tdm")

    def _contexts(
        self, params: dict[str, Params], inputs: SamplingInputs
    ) -> Float[Array, "3 b n d"]:
        """Returns the contexts of no text and of the prompt, which takes the subjects' place."""
        encode = self.networks.text_encoder.bind(params["text_encoder"])
        text = encode(inputs.input_ids)
        return jnp.stack([encode(inputs.null_ids), text, text])
