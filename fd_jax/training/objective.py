"""From a batch to its loss: what the TDM, the SDM or the autoencoder alone is trained to do."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from fd_jax.conditioning.encode import embed_subjects
from fd_jax.config import Config, nearest
from fd_jax.data.examples import Example
from fd_jax.errors import InputError
from fd_jax.losses import appearance, denoising, localization, reconstruction
from fd_jax.models.vae import Posterior
from fd_jax.networks import Networks
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.types import (
    Context,
    HasSubject,
    Images,
    Latents,
    Params,
    SubjectEmbeds,
    SubjectIndex,
    SubjectPixels,
    Tokens,
)

Metrics = dict[str, Float[Array, ""]]
Kind = Literal["tdm", "sdm", "vae", "encoder"]

PARTS = {
    "tdm": ("unet", "vae", "text_encoder"),
    "sdm": ("unet", "vae", "text_encoder", "image_encoder", "subject_fusion"),
    "vae": ("vae",),
    "encoder": ("image_encoder",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """What is learnt, and how it is weighed."""

    kind: Kind = "sdm"
    """tdm: scenes, from the text alone. sdm: persons, whose photographs augment the text.
    vae: the autoencoder alone, which TDM and SDM then begin with and share. encoder: the image
    encoder alone, by the appearance loss, for an SDM to begin with."""
    mask_probability: float = 0.5
    """How often the noise loss of a batch counts the subjects' pixels alone (sdm)."""
    absent: denoising.Absent = "whole"
    """What a sample without subjects counts in such a batch: whole, its whole image; released,
    nothing, as in the released code."""
    localization_weight: float = 1e-3
    """Of the localization loss (sdm)."""
    localization_levels: tuple[str, ...] = localization.LEVELS
    """Levels of the UNet whose cross-attention the localization loss looks at."""
    appearance_weight: float = 0.0
    """Of the appearance loss, for an image encoder that is trained from scratch (sdm)."""
    min_snr_gamma: float | None = None
    """Gamma of min-SNR weighting (arXiv:2303.09556), 5 as a rule; none by default."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts; by default what the model it begins with does, else epsilon."""
    reconstruction_weight: float = 1.0
    """Of the autoencoder's loss, where the autoencoder trains."""
    divergence_weight: float = 1e-3
    """Of the latents' divergence from a standard normal, where the autoencoder trains."""

    def __post_init__(self):
        super().__post_init__()
        self.require("mask_probability", 0, 1)
        for name in ("localization", "appearance", "reconstruction", "divergence"):
            self.require(f"{name}_weight", 0)
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise InputError(f"min_snr_gamma is {self.min_snr_gamma}, expected more than 0")


class Batch(NamedTuple):
    """Examples, and where each stands in the batch, whichever process loaded it."""

    examples: Example
    position: Int[Array, " b"]


class Inputs(NamedTuple):
    """Examples as the networks take them."""

    image: Images | None  # None where its moments and the text's encoding are given
    subject_pixels: SubjectPixels
    subject_masks: Float[Array, "b s h w"]  # 1 inside, 0 outside and where a subject is absent
    input_ids: Tokens
    subject_token_index: SubjectIndex
    has_subject: HasSubject
    moments: Float[Array, "b h w 8"] | None = None
    text: Context | None = None


class Draws(NamedTuple):
    """What is random in a batch, besides its examples."""

    t: Int[Array, " b"]
    noise: Latents
    posterior_noise: Latents  # latents are mean + std * it
    use_mask: Bool[Array, ""]


def to_inputs(examples: Example) -> Inputs:
    """Returns floats, made on the device: bytes are what travels there."""
    is_inside = examples.segment_map[:, None] == examples.subject_ids[:, :, None, None]
    is_inside &= examples.has_subject[:, :, None, None]
    image = examples.image
    return Inputs(
        None if image is None else image.astype(jnp.float32) / 127.5 - 1,
        examples.subject_pixels.astype(jnp.float32) / 255,
        is_inside.astype(jnp.float32),
        examples.input_ids,
        examples.subject_token_index,
        examples.has_subject,
        _decoded(examples.posterior),
        _decoded(examples.text),
    )


def _decoded(stored: Array | None) -> Array | None:
    """Encodings as floats."""
    if stored is None or stored.dtype != jnp.uint16:
        return stored
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16)


class Objective:
    """The loss of a batch.

    Args:
        networks: The networks.
        config: What is learnt.
        schedule: The noise schedule; its prediction type is the UNet's.
        downscale: How many times smaller the latents are than the image, per side.
        trains_vae: Whether the autoencoder's own loss counts. The UNet's never reaches it. Of a vae
            it is all there is.
    """

    def __init__(
        self,
        networks: Networks,
        config: ObjectiveConfig,
        schedule: ScheduleConfig,
        *,
        downscale: int,
        trains_vae: bool = False,
    ):
        self.networks, self.config, self.schedule = networks, config, schedule
        self.downscale, self.trains_vae = downscale, trains_vae or config.kind == "vae"
        level = alphas_cumprod(schedule)
        self._alpha = np.sqrt(level).astype(np.float32)
        self._sigma = np.sqrt(1 - level).astype(np.float32)

    def draw(self, key: Key[Array, ""], batch: Batch) -> Draws:
        """Returns the draws of a batch, those of each example from its position alone."""
        height, width = (side // self.downscale for side in batch.examples.segment_map.shape[1:])
        shape = (height, width, 4)

        def one(position: Int[Array, ""]) -> tuple[Array, Array, Array]:
            keys = jax.random.split(jax.random.fold_in(key, position), 3)
            t = jax.random.randint(keys[0], (), 0, self.schedule.num_train_timesteps)
            return t, jax.random.normal(keys[1], shape), jax.random.normal(keys[2], shape)

        # No example has this position.
        coin = jax.random.fold_in(key, np.uint32(2**32 - 1))
        use_mask = jax.random.uniform(coin) < self.config.mask_probability
        return Draws(*jax.vmap(one)(batch.position), use_mask)

    def __call__(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean loss of a batch, and its parts.

        Of a vae also the spread of its latents before they are scaled, `latent_std`: the factor
        that brings them to unit variance is one over it.
        """
        config, is_vae = self.config, self.config.kind == "vae"
        if config.kind == "encoder":
            encoder = self.networks.image_encoder.bind(params["image_encoder"])
            loss = self._appearance(embed_subjects(encoder, inputs.subject_pixels), inputs).mean()
            return loss, {"loss": loss}
        vae = self.networks.vae.bind(params["vae"])
        if inputs.moments is None:
            posterior = vae.encode(inputs.image)
        else:
            moments = inputs.moments.astype(jnp.float32)
            posterior = Posterior(*jnp.split(moments, 2, axis=-1))
        z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * draws.posterior_noise
        scaled = z * vae.config.scaling_factor
        losses = {} if is_vae else self._denoise(params, inputs, draws, scaled)
        if self.trains_vae:
            decoded = vae.decode(scaled)
            losses["reconstruction_loss"] = reconstruction.reconstruction_loss(
                decoded, inputs.image
            )
            losses["divergence"] = reconstruction.divergence(posterior)
        weights = {
            "denoising_loss": 1.0,
            "localization_loss": config.localization_weight,
            "appearance_loss": config.appearance_weight,
            "reconstruction_loss": config.reconstruction_weight,
            "divergence": config.divergence_weight,
        }
        total = sum(weights[name] * loss for name, loss in losses.items()).mean()
        means = {name: loss.mean() for name, loss in losses.items()}
        if is_vae:
            means["latent_std"] = z.std()
        return total, {"loss": total, **means}

    def _denoise(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws, latents: Latents
    ) -> dict[str, Float[Array, " b"]]:
        """Returns the losses of the UNet, those of each sample. None reaches the latents."""
        config, is_sdm = self.config, self.config.kind == "sdm"
        latents = jax.lax.stop_gradient(latents)
        alpha, sigma = jnp.asarray(self._alpha)[draws.t], jnp.asarray(self._sigma)[draws.t]
        wide = alpha[:, None, None, None], sigma[:, None, None, None]
        x = wide[0] * latents + wide[1] * draws.noise

        text = inputs.text
        if text is None:
            text = self.networks.text_encoder.bind(params["text_encoder"])(inputs.input_ids)
        context, subjects = text, None
        if is_sdm:
            encoder = self.networks.image_encoder.bind(params["image_encoder"])
            fusion = self.networks.subject_fusion.bind(params["subject_fusion"])
            subjects = embed_subjects(encoder, inputs.subject_pixels)
            context = fusion(text, subjects, inputs.subject_token_index, inputs.has_subject)
        unet = self.networks.unet.bind(params["unet"])
        localizes = is_sdm and config.localization_weight > 0
        levels = config.localization_levels if localizes else ()
        prediction, maps = unet.with_maps(x, draws.t, context, levels)

        kind = self.schedule.prediction_type
        wanted = denoising.target(latents, draws.noise, *wide, kind)
        weight = None
        if config.min_snr_gamma is not None:
            weight = denoising.min_snr_weight(alpha, sigma, config.min_snr_gamma, kind)
        mask = None
        if is_sdm:
            size = latents.shape[1:3]
            mask = denoising.loss_mask(
                inputs.subject_masks, inputs.has_subject, size, config.absent
            )
            mask = jnp.where(draws.use_mask, mask, 1.0)
        losses = {"denoising_loss": denoising.denoising_loss(prediction, wanted, mask, weight)}
        if localizes:
            where = inputs.subject_masks, inputs.subject_token_index, inputs.has_subject
            losses["localization_loss"] = localization.localization_loss(maps, *where)
        if is_sdm and config.appearance_weight > 0:
            losses["appearance_loss"] = self._appearance(subjects, inputs)
        return losses

    def _appearance(self, subjects: SubjectEmbeds, inputs: Inputs) -> Float[Array, " b"]:
        return appearance.appearance_loss(
            subjects, inputs.image, inputs.subject_masks, inputs.has_subject
        )


def check_embeds(config: ObjectiveConfig, dim: int) -> None:
    """Raises InputError if an image encoder's embeddings are too short for the appearance loss."""
    is_used = config.kind == "encoder" or (config.kind == "sdm" and config.appearance_weight > 0)
    if is_used and dim < appearance.SIZE:
        raise InputError(
            f"projection_dim of the image encoder is {dim}, expected at least {appearance.SIZE} "
            "for the appearance loss"
        )


def check_levels(config: ObjectiveConfig, attending: tuple[str, ...]) -> None:
    """Raises InputError if the localization loss asks for a level that has no cross-attention."""
    if config.kind != "sdm" or not config.localization_weight:
        return
    for name in config.localization_levels:
        if name not in attending:
            raise InputError(
                f"localization_levels has {name!r}, expected some of {attending}"
                f"{nearest(name, attending)}"
            )
    if not config.localization_levels:
        raise InputError("localization_levels is empty, expected some, or localization_weight 0")
