"""Encodes prompts and subjects to the contexts that both models are guided with."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from fd_jax.conditioning.clip_text import TextEncoder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.conditioning.subject_fusion import SubjectFusion
from fd_jax.types import Context, HasSubject, SubjectEmbeds, SubjectIndex, Tokens


def embed_subjects(
    image_encoder: ImageEncoder,
    pixels: Float[Array, "b photographs h w 3"],
    weights: Float[Array, "b s p"] | None = None,
) -> SubjectEmbeds:
    """Returns one embedding per subject.

    Args:
        image_encoder: Encodes photographs.
        pixels: A photograph of each subject; with weights p of each, those of the first subject
            first.
        weights: Share of each photograph in the mean of its subject's embeddings.
    """
    b, n, *image = pixels.shape
    embeds = image_encoder(pixels.reshape(b * n, *image)).reshape(b, n, -1)
    if weights is None:
        return embeds
    of_subject = embeds.reshape(*weights.shape, -1)
    return (weights[..., None] * of_subject).sum(axis=2).astype(embeds.dtype)


def augment(
    image_encoder: ImageEncoder,
    subject_fusion: SubjectFusion,
    text: Context,
    pixels: Float[Array, "b photographs h w 3"],
    index: SubjectIndex,
    has_subject: HasSubject,
    weights: Float[Array, "b s p"] | None = None,
) -> Context:
    """Returns the context of prompts with their subjects.

    Args:
        image_encoder: Encodes the subjects.
        subject_fusion: Writes subjects into words.
        text: Output of the text encoder.
        pixels: Photographs.
        index: Position of each subject's token.
        has_subject: Whether each subject is present.
        weights: Share of each photograph in its subject, see `embed_subjects`.
    """
    embeds = embed_subjects(image_encoder, pixels, weights)
    return subject_fusion(text, embeds, index, has_subject)


def encode(
    text_encoder: TextEncoder,
    image_encoder: ImageEncoder,
    subject_fusion: SubjectFusion,
    input_ids: Tokens,
    null_ids: Tokens,
    pixels: Float[Array, "b photographs h w 3"],
    index: SubjectIndex,
    has_subject: HasSubject,
    weights: Float[Array, "b s p"] | None = None,
) -> Float[Array, "3 b n d"]:
    """Returns the contexts of the negative prompt, the prompt, and the prompt with its subjects.

    Args:
        text_encoder: Encodes both prompts.
        image_encoder: Encodes the subjects.
        subject_fusion: Writes subjects into words.
        input_ids: Tokens of the prompt, without markers.
        null_ids: Tokens of the negative prompt.
        pixels: Photographs.
        index: Position of each subject's token.
        has_subject: Whether each subject is present.
        weights: Share of each photograph in its subject, see `embed_subjects`.
    """
    # Both prompts of an image are neighbours, so that a sharded batch stays where it is.
    both = text_encoder(jnp.stack([null_ids, input_ids], axis=1).reshape(-1, input_ids.shape[1]))
    null, text = jnp.moveaxis(both.reshape(-1, 2, *both.shape[1:]), 1, 0)
    augmented = augment(image_encoder, subject_fusion, text, pixels, index, has_subject, weights)
    return jnp.stack([null, text, augmented])
