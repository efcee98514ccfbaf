"""The autoencoder alone, for a TDM and an SDM to be initialized from and to share."""

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from fd_jax import sharding
from fd_jax.architecture import Architecture
from fd_jax.compilation import compiler_options
from fd_jax.data.captions import Tokenizer
from fd_jax.data.photographs import load_photograph
from fd_jax.data.transforms import fit_image
from fd_jax.errors import InputError
from fd_jax.images.pixels import to_signed
from fd_jax.images.sheets import contact_sheet
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import (
    NOISE_OBJECTIVE,
    SUBJECT_OBJECTIVE,
    Draws,
    Inputs,
    Metrics,
    Preview,
    Task,
    autoencoder_losses,
    encode_posterior,
    gather_params,
    sample_posterior,
)
from fd_jax.training.tasks.preview import to_pixels
from fd_jax.types import Images, Params


class Autoencoder(Task):
    """Reconstructs images from latents that are near a standard normal.

    Reports `latent_std`, the standard deviation of unscaled latents: one over it is the
    `scaling_factor` that brings them to unit variance.
    """

    parts = ("vae",)
    unused_objective = (*SUBJECT_OBJECTIVE, *NOISE_OBJECTIVE)

    @classmethod
    def check(cls, config: TrainConfig, architecture: Architecture) -> None:
        """Raises InputError if prompts are to be previewed."""
        if config.preview.prompts:
            raise InputError(
                f"preview.prompts is {config.preview.prompts}, expected none for a vae: it "
                "reconstructs preview.references"
            )

    def loss(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        vae = self.networks.vae.bind(params["vae"])
        posterior = encode_posterior(vae, inputs)
        unscaled = sample_posterior(posterior, draws)
        latents = unscaled * vae.config.scaling_factor
        loss, metrics = self.total(autoencoder_losses(vae, posterior, latents, inputs.images))
        return loss, {**metrics, "latent_std": unscaled.std()}

    def preview(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh) -> Preview | None:
        """Returns what reconstructs the preview's references."""
        if not config.preview.references:
            return None
        return ReconstructionPreview(self, config, mesh)


class ReconstructionPreview:
    """Reconstructs photographs, and shows each beside its reconstruction.

    Args:
        task: The task, for its networks.
        config: Gives the photographs (`preview.references`) and their resolution.
        mesh: Devices; each makes all images.

    Raises:
        InputError: A photograph cannot be used.
    """

    def __init__(self, task: Task, config: TrainConfig, mesh: Mesh):
        paths, side = config.preview.references, config.data.resolution
        self._task = task
        self._mesh = mesh
        self._labels = [path.name for path in paths]
        self._photographs = np.stack([fit_image(load_photograph(path), side) for path in paths])
        self._reconstruct = jax.jit(
            self._reconstruct_images,
            out_shardings=sharding.replicated(mesh),
            compiler_options=compiler_options(mesh, task.networks.dtype),
        )

    def __call__(self, trained: Flat, frozen: Flat) -> UInt8[np.ndarray, "height width 3"]:
        photographs = sharding.to_mesh(self._photographs, sharding.replicated(self._mesh))
        made = to_pixels(sharding.to_host(self._reconstruct(trained, frozen, photographs)))
        pairs = zip(self._photographs, made, strict=True)
        return contact_sheet([np.hstack(pair) for pair in pairs], self._labels)

    def _reconstruct_images(
        self, trained: Flat, frozen: Flat, photographs: UInt8[Array, "b h w 3"]
    ) -> Images:
        networks = self._task.networks
        params = gather_params(trained, frozen, self._mesh, networks.dtype)
        return networks.vae.bind(params["vae"]).reconstruct(to_signed(photographs))
