"""The localization loss: cross-attention to a subject's word should stay inside of its mask."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fd_jax.models.attention import AttentionMap
from fd_jax.types import HasSubject, SubjectIndex

_EPS = 1e-5
# Cross-attention of the five middle levels of Stable Diffusion's UNet (arXiv:2305.10431).
LEVELS = ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.1", "up_blocks.2")


def localization_loss(
    maps: dict[str, AttentionMap],
    masks: Float[Array, "b s h w"],
    index: SubjectIndex,
    has_subject: HasSubject,
) -> Float[Array, " b"]:
    """Returns, for each sample, attention outside the subjects minus attention inside.

    For each layer, head and present subject: the attention to the subject's token averaged over
    the background, minus the same averaged over its mask. Then the mean over subjects, heads and
    layers. Eq. 5 of arXiv:2305.10431.

    Args:
        maps: Cross-attention probabilities by layer; queries are the pixels of a square grid.
        masks: Subject masks, 0 or 1, at the image's size.
        index: Position of each subject's token.
        has_subject: True where a subject is present.
    """
    layers = []
    for probs in maps.values():
        side = math.isqrt(probs.shape[2])
        mask = jax.image.resize(masks, (*masks.shape[:2], side, side), "bilinear")
        mask = mask.reshape(*mask.shape[:2], -1)
        # [b heads q s]: each subject's own column.
        attention = jnp.take_along_axis(probs, index[:, None, None, :], axis=3)

        def mean_over(
            weight: Float[Array, "b s q"], attention: Float[Array, "b heads q s"] = attention
        ) -> Float[Array, "b heads s"]:
            total = jnp.einsum("bhqs,bsq->bhs", attention, weight)
            return total / (weight.sum(axis=2) + _EPS)[:, None, :]

        difference = (mean_over(1 - mask) - mean_over(mask)) * has_subject[:, None, :]
        present = has_subject.sum(axis=1)[:, None] + _EPS
        layers.append((difference.sum(axis=2) / present).mean(axis=1))
    return jnp.stack(layers).mean(axis=0)
