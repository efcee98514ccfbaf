"""Tasks: everything that can be trained, a file each. To add one, write its file and list it."""

from fd_jax.config import nearest
from fd_jax.errors import InputError
from fd_jax.training.config import ObjectiveConfig, TrainConfig
from fd_jax.training.tasks.base import Task
from fd_jax.training.tasks.sdm import Sdm
from fd_jax.training.tasks.tdm import Tdm
from fd_jax.training.tasks.vae import Autoencoder

TASKS: dict[str, type[Task]] = {
    "tdm": Tdm,
    "sdm": Sdm,
    "vae": Autoencoder,
}


def unused_settings(config: TrainConfig) -> list[str]:
    """Returns a message for each field of the objective that was given without an effect."""
    default = ObjectiveConfig()
    return [
        f"objective.{name} has no effect on a {config.task}"
        for name in find_task(config.task).unused_objective
        if getattr(config.objective, name) != getattr(default, name)
    ]


def find_task(name: str) -> type[Task]:
    """Returns the task of a name. Raises InputError if there is none."""
    if name not in TASKS:
        raise InputError(f"task is {name!r}, expected one of {tuple(TASKS)}{nearest(name, TASKS)}")
    return TASKS[name]
