"""The contract of a task, and the arrays that all tasks work on."""

import abc
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from fd_jax import params as parameters
from fd_jax.architecture import Architecture
from fd_jax.data.captions import Tokenizer
from fd_jax.data.examples import Example
from fd_jax.images.pixels import to_signed
from fd_jax.losses import reconstruction, timesteps
from fd_jax.models.vae import VAE, Posterior
from fd_jax.networks import Networks
from fd_jax.params import Flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import ObjectiveConfig, TrainConfig
from fd_jax.types import (
    Context,
    HasSubject,
    Images,
    Latents,
    Params,
    SubjectIndex,
    SubjectPixels,
    Tokens,
)

Metrics = dict[str, Float[Array, ""]]
SampleLosses = dict[str, Float[Array, " b"]]
# Makes a sheet of images, [height, width, 3], from trained and frozen parameters.
Preview = Callable[[Flat, Flat], np.ndarray]


class Batch(NamedTuple):
    """Examples, and the position of each in the global batch, whichever process loaded it."""

    examples: Example
    position: Int[Array, " b"]


class Inputs(NamedTuple):
    """A batch as the networks take it."""

    image: Images | None  # None where a latent cache gives `posterior` and `text`
    subject_pixels: SubjectPixels
    subject_masks: Float[Array, "b s h w"]  # 1 inside, 0 outside and where a subject is absent
    input_ids: Tokens
    subject_token_index: SubjectIndex
    has_subject: HasSubject
    posterior: Float[Array, "b h w 8"] | None = None  # mean and log variance
    text: Context | None = None

    @property
    def images(self) -> Images:
        """The images. Raises ValueError where a latent cache takes their place."""
        if self.image is None:
            raise ValueError("there are no images: a latent cache takes their place")
        return self.image


class Draws(NamedTuple):
    """Random numbers of a step, other than those of its examples."""

    t: Int[Array, " b"]
    noise: Latents
    posterior_noise: Latents  # unscaled latents are mean + std * posterior_noise
    use_mask: Bool[Array, ""]  # whether the denoising loss of this batch is masked


def to_inputs(examples: Example) -> Inputs:
    """Returns the inputs of the networks. Called on the device, where examples arrive as bytes."""
    arrays: Any = examples  # JAX's in place of NumPy's
    is_inside = arrays.segment_map[:, None] == arrays.subject_ids[:, :, None, None]
    is_inside &= arrays.has_subject[:, :, None, None]
    image = arrays.image
    return Inputs(
        image=None if image is None else to_signed(image),
        subject_pixels=arrays.subject_pixels.astype(jnp.float32) / 255,
        subject_masks=is_inside.astype(jnp.float32),
        input_ids=arrays.input_ids,
        subject_token_index=arrays.subject_token_index,
        has_subject=arrays.has_subject,
        posterior=_from_cache(arrays.posterior),
        text=_from_cache(arrays.text),
    )


def _from_cache(stored: Array | None) -> Array | None:
    """Returns floats of a latent cache, which stores bfloat16 as uint16."""
    if stored is None or stored.dtype != jnp.uint16:
        return stored
    return jax.lax.bitcast_convert_type(stored, jnp.bfloat16)


# Fields of the objective, by what has to train for them to have an effect.
SUBJECT_OBJECTIVE = (
    "mask_probability",
    "absent",
    "localization_weight",
    "localization_levels",
)
NOISE_OBJECTIVE = ("min_snr_gamma", "timestep_scale", "prediction_type")


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """One thing that can be trained, such as the TDM.

    Args:
        networks: All networks, of which the task uses its `parts`.
        architecture: Their configs.
        schedule: Noise schedule; its prediction type is the UNet's.
        objective: Options of the losses.
        trains_vae: Whether the autoencoder trains beside the UNet, by its own losses.
    """

    networks: Networks
    architecture: Architecture
    schedule: ScheduleConfig
    objective: ObjectiveConfig
    trains_vae: bool = False

    parts: ClassVar[tuple[str, ...]]
    """Networks that the task holds, as named in checkpoints."""
    frozen_if_given: ClassVar[tuple[str, ...]] = ()
    """Parts that stay frozen where training is initialized from a checkpoint that has them."""
    unused_objective: ClassVar[tuple[str, ...]] = ()
    """Fields of the objective that have no effect."""
    needs_images: ClassVar[bool] = True
    """Whether the loss reads images, which a latent cache does not hold."""

    @classmethod
    @abc.abstractmethod
    def check(cls, config: TrainConfig, architecture: Architecture) -> None:
        """Raises InputError if the task cannot be trained with these settings."""

    @abc.abstractmethod
    def loss(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the mean loss of a batch, and its terms by name.

        Args:
            params: Parameters by part, in the dtype of computation.
            inputs: The batch.
            draws: Random numbers of the step.
        """

    def preview(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> Preview | None:
        """Returns what makes the preview images, or None if the config asks for none."""
        return None

    def draw(self, key: Key[Array, ""], batch: Batch) -> Draws:
        """Draws the random numbers of a batch, those of an example from its position alone."""
        downscale = self.architecture.vae.downscale
        height, width = (side // downscale for side in batch.examples.segment_map.shape[1:])
        shape = (height, width, 4)
        scale = self.objective.timestep_scale
        cumulative = None if scale is None else jnp.asarray(timesteps.laplace(self.schedule, scale))

        def draw_one(position: Int[Array, ""]) -> tuple[Array, Array, Array]:
            keys = jax.random.split(jax.random.fold_in(key, position), 3)
            num_timesteps = self.schedule.num_train_timesteps
            if cumulative is None:
                t = jax.random.randint(keys[0], (), 0, num_timesteps, jnp.int32)
            else:
                t = timesteps.draw(keys[0], cumulative)
            noise = jax.random.normal(keys[1], shape, jnp.float32)
            return t, noise, jax.random.normal(keys[2], shape, jnp.float32)

        t, noise, posterior_noise = jax.vmap(draw_one)(batch.position)
        batch_key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no example's position
        use_mask = jax.random.uniform(batch_key, (), jnp.float32) < self.objective.mask_probability
        return Draws(t, noise, posterior_noise, use_mask)

    def encode_text(self, params: dict[str, Params], inputs: Inputs) -> Context:
        """Returns the text embeddings of the captions, from the latent cache if it is given."""
        if inputs.text is not None:
            return inputs.text
        return self.networks.text_encoder.bind(params["text_encoder"])(inputs.input_ids)

    def total(self, losses: SampleLosses) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum of the losses, and the mean of each."""
        weights: Mapping[str, float] = {
            "denoising_loss": 1.0,
            "localization_loss": self.objective.localization_weight,
            "reconstruction_loss": self.objective.reconstruction_weight,
            "divergence": self.objective.divergence_weight,
        }
        terms = [weights[name] * loss for name, loss in losses.items()]
        total = functools.reduce(operator.add, terms).mean()
        return total, {"loss": total, **{name: loss.mean() for name, loss in losses.items()}}


def gather_params(trained: Flat, frozen: Flat, mesh: Mesh, dtype: DTypeLike) -> dict[str, Params]:
    """Returns all parameters by part, in the dtype of computation, replicated on every device.

    Sharded parameters are gathered in that dtype. Without the constraint the compiler may rather
    move activations, which are larger.
    """
    replicated = NamedSharding(mesh, P())
    leaves = parameters.cast(frozen | trained, dtype)
    return parameters.nested(jax.lax.with_sharding_constraint(leaves, replicated))


def encode_posterior(vae: VAE, inputs: Inputs) -> Posterior:
    """Returns the posterior of a batch's latents, from the latent cache if it is given."""
    if inputs.posterior is None:
        return vae.encode(inputs.images)
    return Posterior(*jnp.split(inputs.posterior.astype(jnp.float32), 2, axis=-1))


def sample_posterior(posterior: Posterior, draws: Draws) -> Float[Array, "b h w 4"]:
    """Samples unscaled latents."""
    return posterior.mean + jnp.exp(0.5 * posterior.logvar) * draws.posterior_noise


def autoencoder_losses(
    vae: VAE, posterior: Posterior, latents: Latents, image: Float[Array, "b h2 w2 3"]
) -> SampleLosses:
    """Returns the losses of an autoencoder that trains."""
    return {
        "reconstruction_loss": reconstruction.reconstruction_loss(vae.decode(latents), image),
        "divergence": reconstruction.divergence(posterior),
    }
