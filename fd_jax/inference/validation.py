"""Checks of what callers pass: any kind of number, one value or one each, as the code needs it."""

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from fd_jax.data.photographs import Photograph
from fd_jax.errors import InputError


def as_lists(prompts: Any, references: Any) -> tuple[list[str], list[list[Photograph]]]:
    """Returns one prompt or several, with their photographs, as lists. Raises InputError."""
    kinds = (str, os.PathLike, Image.Image, np.ndarray)
    if isinstance(prompts, str):
        prompts = [prompts]
        references = [[references] if isinstance(references, kinds) else references or []]
    elif len(references) == 0:
        references = [[] for _ in prompts]
    if not prompts:
        raise InputError("there are no prompts, expected at least one")
    if isinstance(references, kinds) or len(references) != len(prompts):
        found = type(references).__name__ if isinstance(references, kinds) else len(references)
        raise InputError(
            f"references for {len(prompts)} prompts are {found}, expected {len(prompts)} lists"
        )
    for photographs in references:
        if isinstance(photographs, kinds):
            raise InputError(
                f"references of a prompt are a {type(photographs).__name__}, expected a list of "
                "photographs for each prompt"
            )
    return list(prompts), [list(photographs) for photographs in references]


def one_each(name: str, value: Any, count: int) -> list:
    """Returns `count` values, from as many or from one for all. Raises InputError."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        if len(value) != count:
            raise InputError(f"{name} has {len(value)} values, expected one or {count}")
        return list(value)
    return [value] * count


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns a whole number of any type as an int. Raises InputError outside low..high."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        expected = f"from {low} up" if high is None else f"in {low}..{high}"
        raise InputError(f"{name} is {value!r}, expected a whole number {expected}")
    return number


def number(name: str, value: Any) -> float:
    """Returns a number of any type as a float. Raises InputError."""
    if isinstance(value, bool | str):
        raise InputError(f"{name} is {value!r}, expected a number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}, expected a number") from None


def check_latents(latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns finite latents of this shape. Raises InputError."""
    latents = np.asarray(latents, np.float32)
    if latents.shape != shape:
        raise InputError(f"latents have shape {latents.shape}, expected {shape}")
    if not np.isfinite(latents).all():
        raise InputError("latents have values that are NaN or infinite")
    return latents
