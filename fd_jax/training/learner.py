"""What a run trains: the task, its optimizer, and which parameters are frozen."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import optax

from fd_jax import params
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.merge import find_parts
from fd_jax.checkpoints.weights import Weights
from fd_jax.errors import InputError
from fd_jax.networks import Networks, make_networks
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig
from fd_jax.training.initial_weights import find_architecture
from fd_jax.training.optimizer import OptimizerConfig, learning_rate_factors, make_optimizer
from fd_jax.training.tasks import find_task
from fd_jax.training.tasks.base import Task


class Learner(NamedTuple):
    """A task and how it is trained.

    Attributes:
        task: The task, with its networks.
        factors: Learning-rate factor of each parameter that trains, by path.
        optimizer: Optimizer of these parameters.
        trained: Shapes of the parameters that train, by path.
        frozen: Shapes of the others, by path.
    """

    task: Task
    factors: dict[str, float]
    optimizer: optax.GradientTransformation
    trained: Flat
    frozen: Flat


def make_learner(
    config: TrainConfig, sources: Sequence[Weights], networks: Networks | None = None
) -> Learner:
    """Creates the task of a config and its optimizer. No parameter is allocated.

    Args:
        config: Config of the run.
        sources: Opened checkpoints that it is initialized from.
        networks: Networks to train, by default those that the config describes.

    Raises:
        InputError: The config describes no task, or one that cannot be trained.
    """
    task_type = find_task(config.task)
    architecture, schedule = find_architecture(sources, config.model)
    architecture = at_resolution(architecture, config.data.resolution)
    if config.objective.prediction_type is not None:
        prediction_type = config.objective.prediction_type
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    task_type.check(config, architecture)
    if networks is None:
        compute = config.compute
        networks = make_networks(
            architecture, dtype=compute.dtype, attention=compute.attention, remat=compute.remat
        )
    shapes = networks.shapes()
    abstract = params.flat({part: shapes[part] for part in task_type.parts})
    factors = trained_factors(config.optimizer, abstract, task_type, sources)
    task = task_type(
        networks,
        architecture,
        schedule,
        config.objective,
        trains_vae=any(path.startswith("vae/") for path in factors),
    )
    return Learner(
        task=task,
        factors=factors,
        optimizer=make_optimizer(config.optimizer, factors, config.loop.num_steps),
        trained={path: abstract[path] for path in factors},
        frozen={path: leaf for path, leaf in abstract.items() if path not in factors},
    )


def at_resolution(architecture: Architecture, resolution: int) -> Architecture:
    """Returns the architecture with the sample size of training, which sampling uses by default.

    Raises:
        InputError: VAE and UNet cannot downscale images of this size.
    """
    unit = architecture.vae.downscale * architecture.unet.downscale
    if resolution % unit:
        raise InputError(
            f"data.resolution is {resolution}, expected a multiple of {unit}, by which VAE and "
            "UNet downscale images"
        )
    latents = resolution // architecture.vae.downscale
    return architecture._replace(
        unet=dataclasses.replace(architecture.unet, sample_size=latents),
        vae=dataclasses.replace(architecture.vae, sample_size=resolution),
    )


def trained_factors(
    config: OptimizerConfig,
    abstract: Flat,
    task: type[Task],
    sources: Sequence[Weights],
) -> dict[str, float]:
    """Returns the learning-rate factor of each parameter that trains, by path.

    Args:
        config: Holds the table of patterns.
        abstract: Shapes of the task's parameters.
        task: Says which parts stay frozen if a checkpoint gives them.
        sources: Opened checkpoints.

    Raises:
        InputError: Nothing trains.
    """
    factors = learning_rate_factors(config, abstract)
    given = find_parts(sources)
    kept = [part for part in task.frozen_if_given if part in given]
    factors = {path: f for path, f in factors.items() if path.split("/")[0] not in kept}
    if not factors:
        origins = ", ".join(f"{part} of {given[part].path}" for part in kept)
        raise InputError(
            f"optimizer.train is {config.train}, by which nothing trains: {origins} stays frozen"
        )
    return factors


def model_task(task: Task) -> Task:
    """Returns the task with networks whose FLOPs are the model's: they rematerialize nothing."""
    networks = make_networks(task.architecture, dtype=task.networks.dtype, attention="plain")
    return dataclasses.replace(task, networks=networks)
