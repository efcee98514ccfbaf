"""FLOPs of a traced function and of a training step, and peak FLOP/s by device."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from fd_jax import params
from fd_jax.data.captions import MAX_TOKENS
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.params import Flat
from fd_jax.training.step import TrainState
from fd_jax.training.tasks.base import Batch, Draws, Task, to_inputs

# Dense bfloat16 FLOP/s by device kind, from the vendors' data sheets.
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
    """Returns the bfloat16 FLOP/s of a kind of device, or None if it is unknown, such as a CPU."""
    names = [name for name in _PEAKS if kind == name or kind.startswith(f"{name} ")]
    return _PEAKS[max(names, key=len)] if names else None


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts the FLOPs of all matrix products and convolutions of a function, two per multiply-add.

    Args:
        function: Function to trace. The body of a loop counts once per iteration; of a
            conditional, the most expensive branch counts.
        *args: Arrays, or their shapes.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def count_step_flops(task: Task, state: TrainState, frozen: Flat, data: DataConfig) -> int:
    """Counts the model FLOPs of a training step: without rematerialization.

    Args:
        task: Task, with networks that rematerialize nothing.
        state: Training state, or its shapes.
        frozen: Frozen parameters, or their shapes.
        data: Gives the shapes of a batch.
    """
    batch = abstract_batch(task, data)
    draws = jax.eval_shape(task.draw, jax.random.key(0), batch)

    def gradient(trained: Flat, frozen: Flat, batch: Batch, draws: Draws) -> Flat:
        def loss(trained: Flat) -> jax.Array:
            return task.loss(params.nested(frozen | trained), to_inputs(batch.examples), draws)[0]

        return jax.grad(loss)(trained)

    return count_flops(gradient, state.params, frozen, batch, draws)


def abstract_batch(task: Task, data: DataConfig) -> Batch:
    """Returns the shapes of a batch."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((data.batch_size, *shape), dtype)

    side = data.resolution
    subject_side = data.subject_resolution
    if data.latent_cache is None:
        encoded = {"image": array(jnp.uint8, side, side, 3)}
    else:
        stored = jnp.uint16 if task.networks.dtype == jnp.bfloat16 else jnp.float32
        latent_side = side // task.architecture.vae.downscale
        width = task.architecture.text_encoder.hidden_size
        encoded = {
            "image": None,
            "posterior": array(stored, latent_side, latent_side, 8),
            "text": array(stored, MAX_TOKENS, width),
        }
    examples = Example(
        segment_map=array(jnp.uint8, side, side),
        subject_pixels=array(jnp.uint8, data.max_subjects, subject_side, subject_side, 3),
        subject_ids=array(jnp.uint8, data.max_subjects),
        input_ids=array(jnp.int32, MAX_TOKENS),
        subject_token_index=array(jnp.int32, data.max_subjects),
        has_subject=array(jnp.bool_, data.max_subjects),
        index=array(jnp.int32),
        **encoded,
    )
    return Batch(examples, array(jnp.int32))


def _count(jaxpr: Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn) -> int:
    params, name = equation.params, equation.primitive.name
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * results[0].size * math.prod(operands[0].shape[i] for i in contracted)
    if name == "conv_general_dilated":
        kernel = operands[1]
        out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # The backward pass of a strided convolution dilates its input; the inserted zeros are not
        # counted.
        inserted = math.prod(params["lhs_dilation"])
        return 2 * results[0].size * (kernel.size // out_features) // inserted
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
