"""Arithmetic that a function asks for, and that a device can do."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Dense bfloat16 FLOP/s by device kind, from the makers' data sheets.
_PEAKS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(kind: str) -> float | None:
    """Returns the bfloat16 FLOP/s of a kind of device, or None if not known, as of a CPU."""
    names = [name for name in _PEAKS if kind == name or kind.startswith(f"{name} ")]
    return _PEAKS[max(names, key=len)] if names else None


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Returns the FLOPs of all products and convolutions of a function, two per multiply-add.

    Args:
        function: Is traced, not run. What loops do is counted as often as they do it; of a
            conditional the dearest branch counts.
        *args: Arrays, or their shapes.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
    params, name = equation.params, equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # Zeros that are only inserted by a stride on the way back are not multiplied in earnest.
        inserted = math.prod(params["lhs_dilation"])
        return 2 * equation.outvars[0].aval.size * (kernel.size // out_features) // inserted
    inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return (
        [jaxpr for entry in value for jaxpr in _jaxprs(entry)] if isinstance(value, tuple) else []
    )
