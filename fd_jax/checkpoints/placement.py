"""Where parameters that are read are to live, and in which dtype."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.typing import DTypeLike

Path = tuple[str | int, ...]


class Placement(NamedTuple):
    """What becomes of parameters that are read.

    Attributes:
        dtype: Of matrices and convolutions. Norms and biases stay float32, as they cost nothing.
        sharding: Where a parameter is to live, by its path and shape.
        advance: Called with 1 after each tensor.
    """

    dtype: DTypeLike
    sharding: Callable[[Path, tuple[int, ...]], jax.sharding.Sharding]
    advance: Callable[[int], object] = lambda count: None
