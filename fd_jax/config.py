"""Base of all configs: frozen dataclasses, checked on construction, compared and stored as JSON."""

import dataclasses
import difflib
import functools
import math
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from fd_jax.buckets import as_bucket
from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, as metadata of its type: `Annotated[int, Range(1)]`.

    As metadata of a tuple's type, they bound its length.

    Attributes:
        low: Smallest number allowed.
        high: Largest number allowed.
        above: Number that must be exceeded.
    """

    low: float | int = -math.inf
    high: float | int = math.inf
    above: float | int = -math.inf

    def __contains__(self, number: float | int) -> bool:
        return self.low <= number <= self.high and number > self.above

    def __str__(self) -> str:
        low, high = not math.isinf(self.low), not math.isinf(self.high)
        if not math.isinf(self.above):
            return f" above {self.above}" + (f", at most {self.high}" if high else "")
        if low and high:
            return f" in {self.low}..{self.high}"
        return f", {self.high} or less" if high else f", {self.low} or more"


class Config:
    """Base of frozen dataclasses whose fields are checked on construction.

    The annotation of a field says everything that is checked: its type, and the range of a number
    (`Annotated[float, Range(0, 1)]`). Scalars of NumPy and JAX become Python's. A subclass that
    checks several fields against each other does so in its own `__post_init__`.

    Attributes:
        error: Type of the error that is raised.

    Raises:
        InputError: A value does not fit its field; the message names class, field, value and what
            was expected.
    """

    error: ClassVar[type[InputError]] = InputError

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
                value = value.item()
                object.__setattr__(self, name, value)  # the dataclass is frozen
            if (stored := _with_buckets(value)) is not value:
                object.__setattr__(self, name, stored)
            check_value(f"{type(self).__name__}: {name}", value, hint, self.error)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the annotated types of a config's fields by name, with their ranges."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in _fields(cls)}


def check_value(name: str, value: Any, hint: Any, error: type[InputError] = InputError) -> None:
    """Raises an error unless a value has the annotated type, and its numbers lie in their ranges.

    Args:
        name: Name of the value, for the message.
        value: The value.
        hint: Its type, such as `Annotated[int, Range(1)] | None`.
        error: Type of the error.
    """
    if not _fits(value, hint):
        raise error(f"{name} is {value!r}, expected {_described(hint)}")


def to_json(value: Any) -> Any:
    """Converts a config, with everything nested in it, to JSON's types. Paths become strings."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in _fields(value)}
    if isinstance(value, tuple) and (as_dict := getattr(value, "_asdict", None)) is not None:
        return to_json(as_dict())
    if isinstance(value, Mapping):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Compares two configs in JSON's types; returns (old, new) of each difference by dotted name.

    Args:
        old: The first config.
        new: The second config.
        name: Dotted name of both inside a larger config.
    """
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {name: (old, new)}
    changed = {}
    for key in [*old, *(key for key in new if key not in old)]:
        inner = f"{name}.{key}" if name else key
        changed |= differences(old.get(key), new.get(key), inner)
    return changed


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `, did you mean ...?` with the most similar of `names`, or an empty string."""
    similar = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {similar[0]!r}?" if similar else ""


def _with_buckets(value: Any) -> Any:
    """Returns a path, or a tuple of paths, with those in buckets as such."""
    if isinstance(value, tuple) and any(isinstance(entry, Path) for entry in value):
        return tuple(map(_with_buckets, value))
    return as_bucket(value) if isinstance(value, Path) else value


def _fields(config: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(config)


_PLAIN = {
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "finite numbers"),
    bool: ("True or False", "booleans"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
}


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        ranges = [bounds for bounds in args[1:] if isinstance(bounds, Range)]
        if not _fits(value, args[0]):
            return False
        number = len(value) if isinstance(value, tuple) else value
        return number is None or all(number in bounds for bounds in ranges)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is Ellipsis:
            return all(_fits(entry, args[0]) for entry in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if hint is float:
        # NaN fails the comparison, and so does an integer that no float can hold.
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    if hint in (int, bool):
        return type(value) is hint
    return hint is Any or isinstance(value, origin or hint)


def _described(hint: Any, *, plural: bool = False) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        ranges = [str(bounds) for bounds in args[1:] if isinstance(bounds, Range)]
        return "".join([_described(args[0], plural=plural), *ranges])
    if origin in (Union, types.UnionType):
        return " or ".join(_described(arg) for arg in args)
    if origin is Literal:
        return f"one of {args}"
    if origin is tuple and args[-1] is Ellipsis:
        return f"a list of {_described(args[0], plural=True)}"
    if origin is tuple:
        return f"({', '.join(_described(arg) for arg in args)})"
    if hint is types.NoneType:
        return "None"
    if hint in _PLAIN:
        return _PLAIN[hint][plural]
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
