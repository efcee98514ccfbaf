"""What users ask for: pictures of a prompt and photographs, checked against limits."""

import base64
import binascii
import dataclasses
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import numpy as np
from jaxtyping import UInt8

from fd_jax.config import Config, Range, field_types
from fd_jax.data.captions import MAX_SUBJECTS
from fd_jax.data.photographs import load_photograph
from fd_jax.errors import InputError
from fd_jax.inference.inputs import MAX_SEED
from fd_jax.inference.validation import merge_sampler, whole
from fd_jax.sampling.stages import SamplerConfig

# Settings of the sampler that stay as the server was started: others would be compiled.
SHARED = ("smoothing", "tdm_cache_interval", "sdm_cache_interval")
# Settings that pictures of version 0.1 lack; their defaults make the same pictures.
_ADDED = ("tdm_cache_interval", "sdm_cache_interval")
_MAX_NAME = 255  # characters of a file name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits(Config):
    """What one request may ask for."""

    max_photograph_mb: Annotated[float, Range(above=0)] = 10.0
    """Size of a photograph's file in megabytes."""
    max_prompt_length: Annotated[int, Range(1)] = 1000
    """Characters of a prompt."""
    max_num_steps: Annotated[int, Range(1)] = 100
    """Solver steps."""

    @property
    def max_body(self) -> int:
        """Bytes of an HTTP request: the photographs in base64, and half a megabyte for the rest."""
        return int(MAX_SUBJECTS * self.max_photograph_mb * 1e6 * 4 / 3) + 500_000


class Reference(NamedTuple):
    """A photograph that came with a request; it lives as long as the request."""

    name: str
    pixels: UInt8[np.ndarray, "h w 3"]


class ImageRequest(NamedTuple):
    """A picture that is asked for."""

    sampler: SamplerConfig
    seed: int
    number: int  # number of the picture among those of its seed
    label: str  # what sets it apart from the others of its request


class Request(NamedTuple):
    """Pictures of one prompt and its photographs."""

    prompt: str
    negative_prompt: str
    references: tuple[Reference, ...]
    images: tuple[ImageRequest, ...]


def parse_request(
    limits: Limits,
    defaults: SamplerConfig,
    max_images: int,
    *,
    prompt: Any,
    photographs: Any,
    negative_prompt: Any = "",
    num_images: Any = 1,
    first_image: Any = 0,
    seed: Any = 0,
    settings: Any = None,
) -> Request:
    """Returns a request as it came from outside, checked.

    Args:
        limits: Limits of a request.
        defaults: Settings of the sampler that are not given. Those in `SHARED` stay.
        max_images: Largest number of pictures.
        prompt: Prompt with a marker for each photograph.
        photographs: List of {"name": ..., "data": base64 of an image file}.
        negative_prompt: Prompt to guide away from.
        num_images: Number of pictures with each combination of settings.
        first_image: Number of the first.
        seed: Seed of the noise.
        settings: Fields of `SamplerConfig` by name. A list of values makes a grid: a picture for
            each combination, from the same noise; those with alpha above beta are left out.

    Raises:
        InputError: A value cannot be used, or exceeds a limit; the message names it.
    """
    for name, text in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        if not isinstance(text, str):
            raise InputError(f"{name} is a {type(text).__name__}, expected text")
        if len(text) > limits.max_prompt_length:
            raise InputError(
                f"{name} has {len(text)} characters, expected {limits.max_prompt_length} at most"
            )
    first = whole("first_image", first_image, low=0, high=2**31 - 1 - max_images)
    count = whole("num_images", num_images, high=max_images)
    seed = whole("seed", seed, low=0, high=MAX_SEED)
    samplers = _samplers(limits, defaults, {} if settings is None else settings, max_images)
    if len(samplers) * count > max_images:
        raise InputError(
            f"{len(samplers)} settings and {count} pictures of each are "
            f"{len(samplers) * count} pictures, expected {max_images} at most"
        )
    images = [
        ImageRequest(sampler, seed, number, label or f"seed {seed}, picture {number}")
        for label, sampler in samplers.items()
        for number in range(first, first + count)
    ]
    return Request(prompt, negative_prompt, _references(limits, photographs), tuple(images))


def file_bytes(name: str, data: Any, limits: Limits) -> bytes:
    """Returns the content of a file in base64, with or without a data URI's head.

    Raises:
        InputError: It is no base64, or too large.
    """
    if not isinstance(data, str):
        raise InputError(f"{name}: data is a {type(data).__name__}, expected base64")
    if data.startswith("data:"):
        data = data.partition(",")[2]
    most = int(limits.max_photograph_mb * 1e6)
    if len(data) * 3 // 4 > most + 2:
        raise InputError(
            f"{name} has {len(data) * 3 / 4e6:.1f} MB, expected {limits.max_photograph_mb:g} at "
            "most"
        )
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{name}: data is no base64: {error}") from error


def parse_settings(texts: Mapping[str, str]) -> tuple[dict[str, Any], SamplerConfig]:
    """Returns what a picture's PNG file says of it: its own fields, and its sampler.

    Args:
        texts: Text chunks, as `fd_jax.read_settings` returns them.

    Raises:
        InputError: The file was not written by this project, or a setting cannot be used.
    """
    own = {name: _value(name, texts, str) for name in ("prompt", "negative_prompt")}
    own |= {name: _value(name, texts, int) for name in ("seed", "image_number")}
    own["references"] = _value("references", texts, list)
    fields = {
        name: _value(name, texts, hint)
        for name, hint in field_types(SamplerConfig).items()
        if name in texts or name not in _ADDED
    }
    return own, SamplerConfig(**fields)


def _value(name: str, texts: Mapping[str, str], hint: Any) -> Any:
    if name not in texts:
        raise InputError(f"the picture has no setting {name}, expected a PNG file of this project")
    origin, args = get_origin(hint), get_args(hint)
    if hint is str or (origin is not None and args and all(isinstance(arg, str) for arg in args)):
        return texts[name]  # text and one of several words are stored as they are
    try:
        return json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise InputError(f"setting {name} is {texts[name]:.80}, expected JSON") from error


def _references(limits: Limits, photographs: Any) -> tuple[Reference, ...]:
    if not isinstance(photographs, Sequence) or isinstance(photographs, str):
        raise InputError(f"photographs is a {type(photographs).__name__}, expected a list")
    if len(photographs) > MAX_SUBJECTS:
        raise InputError(
            f"there are {len(photographs)} photographs, expected {MAX_SUBJECTS} at most"
        )
    references = []
    for i, photograph in enumerate(photographs):
        if not isinstance(photograph, Mapping) or not {"name", "data"} <= set(photograph):
            raise InputError(f"photograph {i} is no object with name and data")
        name = Path(str(photograph["name"])[:_MAX_NAME].replace("\0", "")).name or f"photograph {i}"
        file = io.BytesIO(file_bytes(name, photograph["data"], limits))
        file.name = name  # of the photograph, in messages
        references.append(Reference(name, load_photograph(file)))
    return tuple(references)


def _samplers(
    limits: Limits, defaults: SamplerConfig, settings: Any, most: int
) -> dict[str, SamplerConfig]:
    """Returns the sampler of each combination of settings, by its label."""
    if not isinstance(settings, Mapping):
        raise InputError(f"settings is a {type(settings).__name__}, expected names and values")
    for name in SHARED:
        expected = getattr(defaults, name)
        if settings.get(name, expected) != expected:
            raise InputError(
                f"{name} is {settings[name]!r}, expected {expected!r}, with which this server was "
                "started"
            )
    lists = {name: value for name, value in settings.items() if isinstance(value, list)}
    total = int(np.prod([len(values) for values in lists.values()], dtype=object))
    if not 1 <= total <= 10 * most:
        raise InputError(f"settings have {total} combinations, expected 1..{most}")
    samplers = {}
    for values in itertools.product(*lists.values()):
        chosen = {name: _number(name, value) for name, value in zip(lists, values, strict=True)}
        fields = {**{name: _number(name, settings[name]) for name in settings}, **chosen}
        alpha, beta = (fields.get(name, getattr(defaults, name)) for name in ("alpha", "beta"))
        if {"alpha", "beta"} & set(lists) and _is_above(alpha, beta):
            continue
        sampler = merge_sampler(defaults, fields, ("prompt", "photographs", "seed", "num_images"))
        if sampler.num_steps > limits.max_num_steps:
            raise InputError(
                f"num_steps is {sampler.num_steps}, expected {limits.max_num_steps} at most"
            )
        samplers[", ".join(f"{name} {value}" for name, value in chosen.items())] = sampler
    if not samplers:
        raise InputError("alpha is above beta in all combinations, expected alpha <= beta in one")
    return samplers


def _number(name: str, value: Any) -> Any:
    """Returns a whole number as a float where the field is one: JSON does not tell them apart."""
    hint = field_types(SamplerConfig).get(name)
    is_float = hint is float or get_args(hint)[:1] == (float,)
    return float(value) if is_float and type(value) is int and abs(value) < 1e9 else value


def _is_above(alpha: Any, beta: Any) -> bool:
    return all(isinstance(value, int | float) for value in (alpha, beta)) and alpha > beta
