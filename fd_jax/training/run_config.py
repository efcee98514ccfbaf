"""The stored configuration of a run, in its folder's `config.json`, and whether it is the same."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fd_jax import distributed
from fd_jax.config import differences, to_json
from fd_jax.errors import InputError
from fd_jax.files import read_json, write_json
from fd_jax.training.config import TrainConfig

_FILE = "config.json"

# Settings that may differ on resume: they change a step by rounding at most. `data.root` may move,
# as item ids are compared instead.
_FREE = (
    r"compute\.(attention|remat|accumulation)|mesh\..*|log\..*|preview\..*|processes\..*|"
    r"loop\.(?!seed).*|data\.(root|num_workers|num_threads|prefetch|latent_cache|encodings)(\..*)?"
)


def check_resumable(workdir: Path, config: TrainConfig, data: Mapping[str, Any]) -> bool:
    """Returns whether the folder holds a run, which this config resumes.

    Args:
        workdir: Folder of the run.
        config: Config of this run.
        data: Fingerprint of its data.

    Raises:
        InputError: The folder holds a run with another config or other data.
    """
    path = workdir / _FILE
    if not path.exists():
        return False
    content = read_json(path)
    settings = content.get("settings")
    if not isinstance(settings, dict) or not all(
        isinstance(settings.get(name, {}), dict) for name in ("loop", "objective")
    ):
        raise InputError(f"{path} is damaged: settings are {settings!r:.80}, expected an object")
    if changed := changed_settings(settings, config):
        lines = [f"  {name}: {old!r} there, {new!r} here" for name, (old, new) in changed.items()]
        raise InputError(
            "\n".join([f"{workdir} holds a run with other settings:", *lines])
            + "\nexpected the same settings, or a new --workdir"
        )
    if (stored := content.get("data")) != data:
        raise InputError(
            f"{workdir} holds a run on other data: {stored} there, {dict(data)} here; expected "
            "the same items, or a new --workdir"
        )
    return True


def write_config(workdir: Path, config: TrainConfig, data: Mapping[str, Any]) -> None:
    """Stores config, fingerprint of the data and versions of the packages."""
    content = {
        "settings": to_json(config),
        "data": dict(data),
        "versions": distributed.versions(),
    }
    write_json(workdir / _FILE, content)


def changed_settings(stored: Mapping[str, Any], config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the stored and the given value of all settings that must not change on resume."""
    changed = differences(_upgrade(stored), to_json(config))
    changed = {name: pair for name, pair in changed.items() if not re.fullmatch(_FREE, name)}
    if config.optimizer.schedule != "constant":
        old, new = stored.get("loop", {}).get("num_steps"), config.loop.num_steps
        if old != new:  # the step at which the learning rate ends
            changed["loop.num_steps"] = (old, new)
    return changed


def _upgrade(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of version 0.1 by today's names."""
    settings = dict(stored)
    objective = dict(settings.get("objective") or {})
    if "kind" in objective:
        settings["task"] = objective.pop("kind")
        if not objective.get("appearance_weight"):  # of the appearance loss, removed
            objective.pop("appearance_weight", None)
        settings["objective"] = objective
    return settings
