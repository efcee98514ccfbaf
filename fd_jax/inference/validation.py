"""Checks of the arguments that callers of the pipeline pass: numbers, lists, arrays."""

import dataclasses
import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from fd_jax.config import nearest
from fd_jax.data.photographs import is_photograph
from fd_jax.errors import InputError
from fd_jax.inference.inputs import MAX_SEED
from fd_jax.sampling.stages import NULL, SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig


def prompts_and_references(prompts: Any, references: Any) -> tuple[list[str], list[list[Any]]]:
    """Returns one prompt or several, with the people of each, as lists.

    A person is a photograph, or a list of several.

    Raises:
        InputError: A prompt is no string, or there is not a list of photographs for each prompt.
    """
    if isinstance(prompts, str):
        is_one = references is not None and is_photograph(references)
        return [prompts], [[references] if is_one else _people("references", references)]
    prompts = as_list("prompts", prompts, "strings")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"prompt {i} is {described(prompt)}, expected a string")
    if not prompts:
        raise InputError("there are no prompts, expected at least one")
    if references is not None and is_photograph(references):
        raise InputError(
            f"references for {len(prompts)} prompts are {described(references)}, expected "
            f"{len(prompts)} lists"
        )
    references = as_list("references", references, "lists of photographs")
    if not references:
        return prompts, [[] for _ in prompts]
    if len(references) != len(prompts):
        raise InputError(
            f"references for {len(prompts)} prompts are {len(references)}, expected "
            f"{len(prompts)} lists"
        )
    for photographs in references:
        if is_photograph(photographs):
            raise InputError(
                f"references of a prompt are {described(photographs)}, expected a list of "
                "photographs for each prompt"
            )
    return prompts, [_people("references of a prompt", row) for row in references]


def _people(name: str, values: Any) -> list[Any]:
    """Returns people, those of several photographs as lists of them."""
    people = []
    for i, person in enumerate(as_list(name, values, "photographs")):
        if not is_photograph(person):
            person = as_list(f"{name}: entry {i}", person, "photographs of a person")
            if not person or not all(map(is_photograph, person)):
                found = "an empty list" if not person else "a list of other things"
                raise InputError(
                    f"{name}: entry {i} is {found}, expected a photograph, or a list of "
                    "photographs of one person"
                )
        people.append(person)
    return people


def optional_bool(name: str, value: Any) -> bool | None:
    """Returns True, False or None. Raises InputError for anything else."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {described(value)}, expected True, False or None")
    return value if value is None else bool(value)


def one_each(name: str, value: Any, count: int) -> list[Any]:
    """Returns `count` values, from as many or from one for all. Raises InputError."""
    is_one = isinstance(value, str | bytes) or getattr(value, "ndim", 1) == 0
    if is_one or not isinstance(value, Iterable):
        return [value] * count
    values = as_list(name, value, "values")
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} values, expected one or {count}")
    return values


def seeds(value: Any, count: int) -> list[int]:
    """Returns `count` seeds, from as many or from one for all. Raises InputError."""
    return [whole("seed", seed, low=0, high=MAX_SEED) for seed in one_each("seed", value, count)]


def as_list(name: str, values: Any, items: str) -> list[Any]:
    """Returns the items of anything that has them in order; None has none. Raises InputError."""
    if values is None:
        return []
    has_no_order = isinstance(values, Mapping | Set | str | bytes | bytearray)
    if has_no_order or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise InputError(f"{name} is {described(values)}, expected a list of {items}")
    return list(values)


def whole(name: str, value: Any, low: int = 1, high: int | None = None) -> int:
    """Returns a whole number of any type as an int. Raises InputError outside low..high."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        expected = f"{low} or more" if high is None else f"in {low}..{high}"
        raise InputError(f"{name} is {value!r:.80}, expected a whole number {expected}")
    return number


def merge_sampler(
    sampler: Any, fields: Mapping[str, Any], other_names: Iterable[str]
) -> SamplerConfig:
    """Returns the config with some of its fields replaced.

    Args:
        sampler: A `SamplerConfig`.
        fields: New values by name.
        other_names: Names of other arguments, to be suggested where a name is unknown.

    Raises:
        InputError: A name is unknown, or a value cannot be used.
    """
    if not isinstance(sampler, SamplerConfig):
        raise InputError(f"sampler is {described(sampler)}, expected a SamplerConfig")
    known = [field.name for field in dataclasses.fields(SamplerConfig)]
    for name in fields:
        if name not in known:
            raise InputError(
                f"unknown argument {name!r}, expected a field of SamplerConfig: {', '.join(known)}"
                f"{nearest(name, [*known, *other_names])}"
            )
    # Scalars of NumPy and JAX become Python's.
    plain = {
        name: value.item() if getattr(value, "ndim", None) == 0 else value
        for name, value in fields.items()
    }
    return dataclasses.replace(sampler, **plain)


def unused_options(sampler: SamplerConfig, *, negative_prompt: bool, references: bool) -> list[str]:
    """Returns a message for each option that was given but changes no picture.

    Args:
        sampler: Options that differ from their default count as given.
        negative_prompt: Whether there is a negative prompt.
        references: Whether there are photographs.
    """
    steps = make_steps(sampler, ScheduleConfig())
    is_blended = steps.use_tdm & steps.use_sdm
    mode = sampler.mode
    is_unused = {
        "negative_prompt": negative_prompt and not guides_away(sampler),
        "references": references and not steps.use_sdm.any(),
        "sdm_weight": not (is_blended & ~steps.use_snf).any(),
        "smoothing": not steps.use_snf.any(),
        "alpha": sampler.fusion_start is not None or mode in ("tdm", "sdm"),
        "fusion_start": mode in ("tdm", "sdm"),
        "beta": sampler.fusion_end is not None or mode in ("tdm", "sdm", "delayed"),
        "fusion_end": mode in ("tdm", "sdm", "delayed"),
        "tdm_cache_interval": not steps.reuse_tdm.any(),
        "sdm_cache_interval": not steps.reuse_sdm.any(),
    }
    defaults = {field.name: field.default for field in dataclasses.fields(SamplerConfig)}
    return [
        f"{name} has no effect in mode {mode} with the other options as they are"
        for name, unused in is_unused.items()
        if unused and (name not in defaults or getattr(sampler, name) != defaults[name])
    ]


def guides_away(sampler: SamplerConfig) -> bool:
    """Whether a negative prompt has an effect."""
    steps = make_steps(sampler, ScheduleConfig())
    has_null = steps.use_tdm.any() or (steps.use_sdm & (steps.sdm_uncond == NULL)).any()
    return bool(has_null) and sampler.guidance_scale != 1


def check_latents(latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Returns finite latents of this shape. Raises InputError."""
    try:
        latents = np.asarray(latents, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"latents are no array of numbers: {error}") from error
    if latents.shape != shape:
        raise InputError(f"latents have shape {latents.shape}, expected {shape}")
    if not np.isfinite(latents).all():
        raise InputError("latents have values that are NaN or infinite")
    return latents


def described(value: Any) -> str:
    """Returns the type of a value for a message, with its shape if it has one."""
    name = type(value).__name__
    shape = getattr(value, "shape", None)
    return f"a {name} of shape {shape}" if shape is not None else f"a {name}"
