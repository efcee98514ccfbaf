"""The training state and the pure functions that advance and measure it."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Key, PyTree

from fd_jax import params, sharding
from fd_jax.params import Flat
from fd_jax.training.objective import Batch, Draws, Metrics, Objective, to_inputs
from fd_jax.training.optimizer import update_ema
from fd_jax.types import Params


class TrainState(NamedTuple):
    """What a step changes. Only parameters that train are here, in flat dicts by path."""

    step: Int[Array, ""]  # steps done
    params: Flat
    ema_params: Flat  # empty where no average is kept
    opt_state: optax.OptState


def init_state(
    trained: Flat, optimizer: optax.GradientTransformation, *, keep_ema: bool
) -> TrainState:
    """Returns the state before the first step."""
    ema = jax.tree.map(jnp.copy, trained) if keep_ema else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, ema, optimizer.init(trained))


def bind(trained: Flat, frozen: Flat, mesh: Mesh, dtype: DTypeLike) -> dict[str, Params]:
    """Returns all parameters by part, in the dtype of computation and whole on every device.

    A parameter that is divided over devices is gathered in the dtype of computation. Left alone,
    the compiler may rather move activations, which are larger.
    """
    whole = NamedSharding(mesh, P())
    leaves = params.cast(frozen | trained, dtype)
    return params.nested(jax.lax.with_sharding_constraint(leaves, whole))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema_decay: float | None,
    accumulation: int = 1,
) -> Callable[[TrainState, Flat, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]:
    """Returns `train_step(state, frozen, batch, key)`, not yet compiled.

    Args:
        objective: The loss.
        optimizer: What makes updates of gradients.
        mesh: The devices.
        ema_decay: Of the moving average, if one is kept.
        accumulation: In how many parts, one after another, the gradient of a batch is computed.
    """
    dtype = objective.networks.dtype

    def loss(trained: Flat, frozen: Flat, batch: Batch, draws: Draws):
        with sharding.on_mesh(mesh):
            return objective(bind(trained, frozen, mesh, dtype), to_inputs(batch.examples), draws)

    gradient = jax.grad(loss, has_aux=True)

    def train_step(
        state: TrainState, frozen: Flat, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)  # a resumed run draws the same
        draws = objective.draw(key, batch)
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
        trained = optax.apply_updates(state.params, updates)
        ema = state.ema_params
        if ema_decay is not None:
            ema = update_ema(ema_decay, ema, trained, state.step)
        metrics = {**metrics, "gradient_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, trained, ema, opt_state), metrics

    return train_step


def make_eval_step(
    objective: Objective, mesh: Mesh
) -> Callable[[Flat, Flat, Batch, Key[Array, ""]], Metrics]:
    """Returns `eval_step(trained, frozen, batch, key)`: the losses of held-out examples.

    The draws follow from key and position alone, so that figures of different steps compare. The
    noise loss is that of whole images.
    """
    dtype = objective.networks.dtype

    def eval_step(trained: Flat, frozen: Flat, batch: Batch, key: Key[Array, ""]) -> Metrics:
        draws = objective.draw(key, batch)
        draws = draws._replace(use_mask=jnp.zeros_like(draws.use_mask))
        with sharding.on_mesh(mesh):
            model = bind(trained, frozen, mesh, dtype)
            return objective(model, to_inputs(batch.examples), draws)[1]

    return eval_step


def in_parts(tree: PyTree, count: int, mesh: Mesh) -> PyTree:
    """Divides the rows of a batch into parts, of which every device holds its share."""
    where = NamedSharding(mesh, P(None, sharding.DATA_AXES))

    def divide(x: Array) -> Array:
        # Rows next to each other live on one device: part i takes every count-th of them.
        parts = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts, where)

    return jax.tree.map(divide, tree)
