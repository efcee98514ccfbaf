"""A lesson for an image encoder that is trained from scratch: what its subject looks like."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fd_jax.types import HasSubject, Images, SubjectEmbeds

_LUMA, _CHROMA = 8, 4  # frequencies a side
SIZE = _LUMA**2 + 2 * _CHROMA**2  # numbers that describe a subject
_GRID = 16  # cells a side of a subject's box

SubjectMasks = Float[Array, "b s h w"]


def appearance_loss(
    embeds: SubjectEmbeds, image: Images, masks: SubjectMasks, has_subject: HasSubject
) -> Float[Array, " b"]:
    """Returns each sample's mean squared error of its subjects' embeddings, absent ones being 0.

    The noise loss alone teaches an encoder late whom it sees: as long as the UNet ignores the
    embeddings, nothing improves them, and the UNet ignores them as long as they say nothing.

    Args:
        embeds: Of the image encoder, from photographs of the subjects; `SIZE` numbers at least, of
            which the first count.
        image: That shows the subjects, -1..1.
        masks: Of each subject, 0 or 1, at the image's size.
        has_subject: Which subjects there are.
    """
    error = embeds[..., :SIZE].astype(jnp.float32) - appearance(image, masks)
    loss = jnp.mean(error**2, axis=-1) * has_subject
    return loss.sum(axis=1) / jnp.maximum(has_subject.sum(axis=1), 1)


def appearance(image: Images, masks: SubjectMasks) -> Float[Array, "b s 96"]:
    """Returns the low frequencies of each subject's colours, of roughly unit variance.

    As in JPEG, but of the subject alone, in its mask's box: its mean colours in a grid of cells, 0
    in those without it, as brightness and two differences of colour, each cosine-transformed.
    """
    rows, columns = _cells(masks.max(axis=3)), _cells(masks.max(axis=2))
    covered = jnp.einsum("bsyh,bshw,bsxw->bsyx", rows, masks, columns)
    colours = jnp.einsum("bsyh,bshw,bhwc,bsxw->bsyxc", rows, masks, image, columns)
    colours = colours / jnp.maximum(covered, 1e-6)[..., None]
    red, green, blue = jnp.moveaxis(colours, -1, 0)
    luma = (red + green + blue) / 3
    parts = [(luma, _LUMA), (red - luma, _CHROMA), (blue - luma, _CHROMA)]
    return jnp.concatenate(
        [_transformed(plane, count, is_luma=count == _LUMA) for plane, count in parts], axis=-1
    )


def _cells(is_inside: Float[Array, "b s n"]) -> Float[Array, "b s 16 n"]:
    """How much each line of pixels belongs to each of the cells between the first and last one."""
    size = is_inside.shape[-1]
    line, cell = jnp.arange(size)[None, None, None], jnp.arange(_GRID)[None, None, :, None]
    is_inside = is_inside[:, :, None] > 0
    first = jnp.min(jnp.where(is_inside, line, size), axis=-1, keepdims=True)
    last = jnp.max(jnp.where(is_inside, line + 1, 0), axis=-1, keepdims=True)
    width = jnp.maximum(last - first, 1) / _GRID
    begin = first + width * cell
    return jnp.clip(jnp.minimum(begin + width, line + 1) - jnp.maximum(begin, line), 0, 1)


def _transformed(
    plane: Float[Array, "b s y x"], count: int, *, is_luma: bool
) -> Float[Array, "b s n"]:
    """The lowest frequencies of a plane, scaled up as pictures have less of the higher ones."""
    k, n = np.arange(count)[:, None], np.arange(_GRID)[None]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * _GRID)) * np.where(k == 0, 1, np.sqrt(2)) / _GRID
    scale = (2.5 if is_luma else 8.0) * (1 + 1.5 * np.hypot(k, k.T))
    found = jnp.einsum("uy,bsyx,vx->bsuv", basis, plane, basis) * scale[None, None]
    return found.reshape(*found.shape[:2], -1)
