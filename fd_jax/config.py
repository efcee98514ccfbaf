"""Settings: frozen dataclasses, checked against their types, compared and stored as JSON."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from fd_jax.errors import InputError


class Config:
    """Base of dataclasses whose fields are checked on construction.

    Raises:
        InputError: A value is of another type than its field.
    """

    def __post_init__(self):
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not _fits(value, hint):
                raise InputError(
                    f"{type(self).__name__}: {field.name} is {value!r}, expected {_named(hint)}"
                )

    def require(self, name: str, low: int, high: float | int = math.inf) -> None:
        """Raises InputError unless a number, if it is given, lies in low..high."""
        value = getattr(self, name)
        if value is not None and not low <= value <= high:
            expected = f"{low} or more" if high == math.inf else f"{low}..{high}"
            raise InputError(f"{type(self).__name__}: {name} is {value}, expected {expected}")


def to_json(value: Any) -> Any:
    """Returns settings, nested as they are, in JSON's types. Paths become strings."""
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: to_json(getattr(value, field.name)) for field in fields}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, Mapping):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def differences(old: Any, new: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns old and new value of all settings, as JSON, that differ, by dotted name."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {name: (old, new)}
    found = {}
    for key in [*old, *(key for key in new if key not in old)]:
        inner = f"{name}.{key}" if name else key
        found |= differences(old.get(key), new.get(key), inner)
    return found


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns `, did you mean ...?` with the most similar of `names`, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f", did you mean {found[0]!r}?" if found else ""


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
    return isinstance(value, hint)


def _named(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
