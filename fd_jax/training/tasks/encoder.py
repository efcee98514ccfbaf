"""The image encoder alone, for an SDM to be initialized from."""

from jaxtyping import Array, Float

from fd_jax.architecture import Architecture
from fd_jax.conditioning.encode import embed_subjects
from fd_jax.errors import InputError
from fd_jax.losses import appearance
from fd_jax.training.config import TrainConfig
from fd_jax.training.tasks.base import (
    IMAGE_OBJECTIVE,
    NOISE_OBJECTIVE,
    SUBJECT_OBJECTIVE,
    Draws,
    Inputs,
    Metrics,
    Task,
)
from fd_jax.types import Params


class SubjectEncoder(Task):
    """Predicts subjects' coarse colours from photographs of them: the appearance loss."""

    parts = ("image_encoder",)
    unused_objective = (*SUBJECT_OBJECTIVE, *NOISE_OBJECTIVE, *IMAGE_OBJECTIVE)

    @classmethod
    def check(cls, config: TrainConfig, architecture: Architecture) -> None:
        """Raises InputError without room for subjects, or if previews are asked for."""
        if config.data.max_subjects < 1:
            raise InputError("data.max_subjects is 0, expected at least 1 for an encoder")
        if config.preview.prompts + config.preview.references:
            raise InputError(
                "preview is not empty, expected no preview: an encoder makes no images"
            )
        check_embedding_size(architecture.image_encoder.projection_dim)

    def loss(
        self, params: dict[str, Params], inputs: Inputs, draws: Draws
    ) -> tuple[Float[Array, ""], Metrics]:
        encoder = self.networks.image_encoder.bind(params["image_encoder"])
        loss = appearance.appearance_loss(
            embed_subjects(encoder, inputs.subject_pixels),
            inputs.images,
            inputs.subject_masks,
            inputs.has_subject,
        ).mean()
        return loss, {"loss": loss}


def check_embedding_size(size: int) -> None:
    """Raises InputError if embeddings are too short for the appearance loss."""
    if size < appearance.SIZE:
        raise InputError(
            f"projection_dim of the image encoder is {size}, expected at least {appearance.SIZE} "
            "for the appearance loss"
        )
