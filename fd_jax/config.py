"""Base of all configs: frozen dataclasses, checked on construction, compared and stored as JSON."""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, as metadata of its type: `Annotated[int, Range(1)]`.

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
            return f"more than {self.above}" + (f", at most {self.high}" if high else "")
        if low and high:
            return f"{self.low}..{self.high}"
        return f"{self.high} or less" if high else f"{self.low} or more"


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
        for name, hint in _field_hints(type(self)).items():
            value = getattr(self, name)
            if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
                value = value.item()
                object.__setattr__(self, name, value)  # the dataclass is frozen
            if not _fits(value, hint):
                self._refuse(name, value, _named(hint))
            for bounds in _ranges(hint):
                if value is not None and value not in bounds:
                    self._refuse(name, value, str(bounds))

    def require(self, name: str, low: int, high: float | int = math.inf) -> None:
        """Raises InputError unless a number, if it is given, lies in low..high."""
        value = getattr(self, name)
        if value is not None and value not in Range(low, high):
            self._refuse(name, value, str(Range(low, high)))

    def _refuse(self, name: str, value: Any, expected: str) -> typing.NoReturn:
        raise self.error(f"{type(self).__name__}: {name} is {value!r}, expected {expected}")


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


def _fields(config: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(config)


@functools.cache
def _field_hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _ranges(hint: Any) -> list[Range]:
    """Ranges of a field itself, not of the entries of a tuple."""
    if get_origin(hint) is typing.Annotated:
        return [bounds for bounds in get_args(hint)[1:] if isinstance(bounds, Range)]
    if get_origin(hint) in (Union, types.UnionType):
        return [bounds for arg in get_args(hint) for bounds in _ranges(arg)]
    return []


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _fits(value, args[0])
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
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (int, bool):
        return type(value) is hint
    return hint is Any or isinstance(value, origin or hint)


def _named(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _named(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_named(arg) for arg in args)
    if origin is Literal:
        return f"one of {args}"
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
