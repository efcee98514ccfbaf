"""The training state and the pure functions that advance and measure it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key, PyTree

from fd_jax import sharding
from fd_jax.params import Flat
from fd_jax.training.optimizer import update_ema
from fd_jax.training.tasks.base import Batch, Draws, Metrics, Task, gather_params, to_inputs


class TrainState(NamedTuple):
    """Parameters that train, by path, with their EMA copies and optimizer state."""

    step: Int[Array, ""]  # number of steps done
    params: Flat
    ema_params: Flat  # empty without EMA
    opt_state: optax.OptState


def init_state(
    trained: Flat, optimizer: optax.GradientTransformation, *, keep_ema: bool
) -> TrainState:
    """Returns the state before the first step."""
    ema = jax.tree.map(jnp.copy, trained) if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, ema, optimizer.init(trained))


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema_decay: float | None,
    accumulation: int = 1,
) -> Callable[[TrainState, Flat, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]:
    """Builds `train_step(state, frozen, batch, key)`, to be jitted by the caller.

    Args:
        task: Task whose loss is minimized.
        optimizer: Optimizer of the parameters that train.
        mesh: Devices.
        ema_decay: Decay of the EMA parameters; None keeps none.
        accumulation: Number of parts of a batch whose gradients are computed one after another.
    """
    dtype = task.networks.dtype

    def loss(trained: Flat, frozen: Flat, batch: Batch, draws: Draws):
        with sharding.on_mesh(mesh):
            params = gather_params(trained, frozen, mesh, dtype)
            return task.loss(params, to_inputs(batch.examples), draws)

    gradient = jax.grad(loss, has_aux=True)

    def train_step(
        state: TrainState, frozen: Flat, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)  # so that a resumed run draws the same
        draws = task.draw(key, batch)
        if accumulation == 1:
            grads, metrics = gradient(state.params, frozen, batch, draws)
        else:
            parts = in_parts((batch, draws._replace(use_mask=None)), accumulation, mesh)

            def part_gradient(part: tuple[Batch, Draws]) -> tuple[Flat, Metrics]:
                rows, some = part
                some = some._replace(use_mask=draws.use_mask)
                return gradient(state.params, frozen, rows, some)

            def add(total: tuple[Flat, Metrics], part: tuple[Batch, Draws]):
                return jax.tree.map(jnp.add, total, part_gradient(part)), None

            shapes = jax.eval_shape(part_gradient, jax.tree.map(lambda x: x[0], parts))
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            total, _ = jax.lax.scan(add, zero, parts)
            grads, metrics = jax.tree.map(lambda x: x / accumulation, total)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        trained: Any = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if ema_decay is not None:
            ema = update_ema(ema_decay, ema, trained, state.step)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, trained, ema, opt_state), metrics

    return train_step


def make_eval_step(
    task: Task, mesh: Mesh
) -> Callable[[Flat, Flat, Batch, Key[Array, ""]], Metrics]:
    """Builds `eval_step(trained, frozen, batch, key)` for the losses of held-out examples.

    Draws depend on key and position alone, so that losses of different steps are comparable. The
    denoising loss is not masked.
    """
    dtype = task.networks.dtype

    def eval_step(trained: Flat, frozen: Flat, batch: Batch, key: Key[Array, ""]) -> Metrics:
        draws = task.draw(key, batch)
        draws = draws._replace(use_mask=jnp.zeros_like(draws.use_mask))
        with sharding.on_mesh(mesh):
            params = gather_params(trained, frozen, mesh, dtype)
            return task.loss(params, to_inputs(batch.examples), draws)[1]

    return eval_step


def in_parts(tree: PyTree, count: int, mesh: Mesh) -> PyTree:
    """Splits the rows of a batch into parts, each of them sharded over all devices."""
    parts_sharding = NamedSharding(mesh, P(None, sharding.DATA_AXES))

    def split(x: Array) -> Array:
        # Neighbouring rows are on one device: part i takes every count-th of them.
        parts = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, parts_sharding)

    return jax.tree.map(split, tree)
