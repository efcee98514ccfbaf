"""Folders of training runs, written without training."""

import pathlib

import jax
import jax.numpy as jnp

from fd_jax.architecture import Architecture
from fd_jax.checkpoints.run.manager import RunCheckpoints, save_frozen
from fd_jax.checkpoints.run.model_json import RunModel, write_model
from fd_jax.params import flat
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params


def write_run(
    folder: pathlib.Path,
    kind: str,
    params: dict[str, Params],
    configs: Architecture,
    schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 - frozen
) -> pathlib.Path:
    """Writes a run whose EMA parameters are `params`: half of each part trained, the rest frozen.

    Trained parameters are larger than their EMA by one; in the first of the two checkpoints both
    are larger by two more.
    """
    leaves = jax.tree.map(jnp.asarray, flat(params))
    trained = {name: leaves[name] for name in sorted(leaves)[::2]}
    write_model(folder, RunModel(kind, tuple(params), configs._asdict(), schedule))
    save_frozen(folder, {name: leaf for name, leaf in leaves.items() if name not in trained})
    with RunCheckpoints(folder) as store:
        for step, more in ((10, 2), (20, 0)):
            train, ema = (
                {name: leaf + add for name, leaf in trained.items()} for add in (more + 1, more)
            )
            state = {"step": jnp.int32(step), "params": train, "opt_state": ()}
            store.save(step, state, ema, {"position": 0}, {"loss": 1.0})
    return folder
