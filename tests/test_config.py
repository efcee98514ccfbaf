import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.config import Config, Range, differences, nearest, to_json
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
        ({"rate": "0.5"}, "Inner: rate is '0.5', expected a finite number"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": True}, "rate is True"),
        ({"names": "abc"}, "names is 'abc'"),
        ({"names": (1,)}, "names is"),
        ({"pair": (1, 2, 3)}, "pair is"),
        ({"root": "folder"}, "root is 'folder'"),
        ({"kind": "c"}, r"kind is 'c', expected one of \('a', 'b'\)"),
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


class DamagedError(InputError):
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged(Config):
    error: ClassVar[type[InputError]] = DamagedError
    count: Annotated[int, Range(1)] = 1
    share: Annotated[float, Range(0, 1)] | None = None
    rate: Annotated[float, Range(above=0)] = 1.0
    loss: Annotated[float, Range(high=2)] = 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "Ranged: count is 0, expected a whole number, 1 or more"),
        ({"count": 1.5}, "Ranged: count is 1.5, expected a whole number"),
        ({"share": 1.1}, r"Ranged: share is 1.1, expected a finite number in 0\.\.1"),
        ({"share": "x"}, "Ranged: share is 'x', expected a finite number in 0..1 or None"),
        ({"rate": 0}, "Ranged: rate is 0, expected a finite number above 0"),
        ({"loss": 3}, "Ranged: loss is 3, expected a finite number, 2 or less"),
    ],
)
def test_ranges_are_checked_and_the_class_names_its_error(settings, message):
    with pytest.raises(DamagedError, match=message):
        Ranged(**settings)


def test_bounds_of_ranges():
    assert Ranged(count=1, share=0, rate=1e-9, loss=2) == Ranged(share=0.0, rate=1e-9, loss=2.0)
    assert Ranged(share=1).share == 1


@pytest.mark.parametrize("one", [np.int64(3), np.array(3), jnp.int32(3)])
def test_scalars_of_arrays_become_python_numbers(one):
    config = Ranged(count=one, loss=np.float32(0.5))

    assert (type(config.count), config.count) == (int, 3)
    assert (type(config.loss), config.loss) == (float, 0.5)


def test_arrays_are_no_numbers():
    with pytest.raises(
        DamagedError, match=r"count is array\(\[3\]\), expected a whole number, 1 or more"
    ):
        Ranged(count=np.array([3]))
