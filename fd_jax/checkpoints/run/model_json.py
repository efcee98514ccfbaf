"""The networks of a training run, described in its folder's `model.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fd_jax.architecture import Architecture
from fd_jax.checkpoints.config_json import config_from_json, config_to_json, schedule_to_json
from fd_jax.checkpoints.diffusers import schedule_from_json
from fd_jax.checkpoints.run import orbax_arrays, step_folders
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, to_path, write_json
from fd_jax.schedule import ScheduleConfig

_FILE = "model.json"
# Folders of a run.
CHECKPOINTS = "checkpoints"  # one folder a step
FROZEN = "frozen"  # parameters that do not train
_CONFIGS = Architecture.__annotations__


class RunModel(NamedTuple):
    """The networks of a training run.

    Attributes:
        task: Name of what is trained, such as `sdm`.
        parts: Names of the networks.
        architecture: Configs by network; of a `RunModel` that was read those of its parts alone.
        schedule: Noise schedule, if there is a UNet.
    """

    task: str
    parts: tuple[str, ...]
    architecture: Mapping[str, Any]
    schedule: ScheduleConfig | None


def is_run(path: str | os.PathLike) -> bool:
    """Whether this is the folder of a training run."""
    return (to_path(path) / _FILE).is_file()


def write_model(run: str | os.PathLike, model: RunModel) -> None:
    """Writes `model.json`, on the first process alone. Raises CheckpointError."""
    content: dict[str, Any] = {"kind": model.task, "parts": list(model.parts)}
    content |= {
        part: config_to_json(config)
        for part, config in model.architecture.items()
        if part in model.parts
    }
    if model.schedule is not None and "unet" in model.parts:
        content["scheduler"] = schedule_to_json(model.schedule)
    if jax.process_index() == 0:
        write_json(to_path(run) / _FILE, content)


def read_model(run: str | os.PathLike) -> RunModel:
    """Reads `model.json`.

    Raises:
        CheckpointError: The file is missing or damaged.
        ConfigError: A config describes an architecture that is not supported.
    """
    path = to_path(run) / _FILE
    content = read_json(path)
    task = content.get("kind")
    if not isinstance(task, str):
        raise CheckpointError(f"{path}: kind is {task!r}, expected the name of a task")
    parts = content.get("parts")
    if parts is None:  # written by version 0.1
        parts = _stored_parts(to_path(run))
    known = [*_CONFIGS, "subject_fusion"]
    if not isinstance(parts, list) or not parts or not all(part in known for part in parts):
        raise CheckpointError(f"{path}: parts is {parts!r:.80}, expected some of {known}")

    def section(name: str) -> dict[str, Any]:
        if not isinstance(found := content.get(name), dict):
            raise CheckpointError(f"{path}: {name} is {found!r}, expected a JSON object")
        return found

    architecture = {
        part: config_from_json(config, section(part), f"{path}: {part}")
        for part, config in _CONFIGS.items()
        if part in parts
    }
    schedule = None
    if "unet" in parts:
        schedule = schedule_from_json(section("scheduler"), f"{path}: scheduler")
    return RunModel(task, tuple(parts), architecture, schedule)


def _stored_parts(run: Path) -> list[str]:
    """Returns the networks that the arrays of a run belong to, in order of their names."""
    steps = step_folders.steps_in(run / CHECKPOINTS)
    names = orbax_arrays.names(run / FROZEN)
    for step in reversed(steps):
        folder = run / CHECKPOINTS / str(step) / step_folders.TRAIN
        try:
            trained = orbax_arrays.names(folder)
        except CheckpointError:  # damaged, so ask the one before
            continue
        names += [name.removeprefix("params/") for name in trained if name.startswith("params/")]
        break
    return sorted({name.split("/")[0] for name in names})
