"""Coarse colours of subjects, which an image encoder trained from scratch learns to predict."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fd_jax.types import Images

_LUMA = 8  # frequencies per axis of the brightness
_CHROMA = 4  # frequencies per axis of each colour difference
SIZE = _LUMA**2 + 2 * _CHROMA**2  # length of a subject's description
_GRID = 16  # cells per axis of a subject's box

SubjectMasks = Float[Array, "b s h w"]


def appearance(image: Images, masks: SubjectMasks) -> Float[Array, "b s 96"]:
    """Returns the low frequencies of each subject's colours, with roughly unit variance.

    As in JPEG, restricted to the subject: the box of its mask is divided into a grid of cells; the
    mean colour of its pixels in each cell (0 without any) is split into brightness and two colour
    differences, and each of the three planes is cosine-transformed.

    Args:
        image: Image of the subjects, [-1, 1].
        masks: Subject masks, 0 or 1, at the image's size.
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
    """Returns the share of each line of pixels in each grid cell of the mask's extent."""
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
    """Returns the lowest frequencies of a plane, the higher ones scaled up to unit variance."""
    k, n = np.arange(count)[:, None], np.arange(_GRID)[None]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * _GRID)) * np.where(k == 0, 1, np.sqrt(2)) / _GRID
    scale = (2.5 if is_luma else 8.0) * (1 + 1.5 * np.hypot(k, k.T))
    found = jnp.einsum("uy,bsyx,vx->bsuv", basis, plane, basis) * scale[None, None]
    return found.reshape(*found.shape[:2], -1)
