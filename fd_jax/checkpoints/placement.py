"""Sharding and dtype of parameters that are read."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.typing import DTypeLike

Path = tuple[str | int, ...]


class Placement(NamedTuple):
    """Dtype and sharding of parameters that are read.

    Attributes:
        dtype: Dtype of matrices and convolutions. Norms and biases, which are small, stay float32.
        sharding: Returns the sharding of a parameter, given its path and shape.
        advance: Called with 1 after each tensor.
    """

    dtype: DTypeLike
    sharding: Callable[[Path, tuple[int, ...]], jax.sharding.Sharding]
    advance: Callable[[int], object] = lambda count: None
