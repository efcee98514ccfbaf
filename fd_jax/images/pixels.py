"""Ranges of pixels: 256 levels in files, [-1, 1] in the VAE, [0, 1] in between."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8


def to_signed(levels: UInt8[Any, "*shape"]) -> Any:
    """Scales 256 levels to [-1, 1], as the VAE encodes images; of the same kind of array."""
    return levels.astype(np.float32) / 127.5 - 1


def to_unit(images: Float[Any, "*shape"]) -> Any:
    """Scales images in [-1, 1] to [0, 1], of the same kind of array. Clips values outside."""
    return (images / 2 + 0.5).clip(0, 1)


def to_uint8(pixels: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Rounds pixels in [0, 1] to 256 levels."""
    return np.round(pixels * 255).astype(np.uint8)
