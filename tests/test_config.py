import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from fd_jax.config import Config, differences, nearest, to_json
from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner(Config):
    rate: float = 0.5
    names: tuple[str, ...] = ()
    pair: tuple[int, float] | None = None
    root: Path | None = None
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer(Config):
    inner: Inner = Inner()
    count: int = 1
    flag: bool = False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": "0.5"}, "Inner: rate is '0.5', expected float"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": True}, "rate is True"),
        ({"names": "abc"}, "names is 'abc'"),
        ({"names": (1,)}, "names is"),
        ({"pair": (1, 2, 3)}, "pair is"),
        ({"root": "folder"}, "root is 'folder'"),
        ({"kind": "c"}, "kind is 'c', expected Literal"),
    ],
)
def test_wrong_types_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Inner(**settings)


@pytest.mark.parametrize("settings", [{"count": 1.0}, {"count": True}, {"flag": 1}, {"inner": {}}])
def test_wrong_types_are_refused_outside_too(settings):
    with pytest.raises(InputError):
        Outer(**settings)


def test_whole_numbers_are_floats():
    assert Inner(rate=1, pair=(1, 2)).rate == 1


def test_json_and_differences():
    old = to_json(Outer(inner=Inner(root=Path("a"), names=("x",))))
    new = to_json(Outer(inner=Inner(root=Path("b"), names=("x",)), count=3))
    assert old["inner"]["root"] == "a"
    assert old["inner"]["names"] == ["x"]
    assert differences(old, new) == {"inner.root": ("a", "b"), "count": (1, 3)}
    assert differences(old, old) == {}
    assert differences({"a": 1}, {"b": 2}) == {"a": (1, None), "b": (None, 2)}


def test_the_nearest_name():
    assert nearest("bach_size", ["batch_size", "root"]) == ", did you mean 'batch_size'?"
    assert nearest("zzz", ["batch_size"]) == ""
