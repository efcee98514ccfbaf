"""Metrics of a run: JSON lines always, TensorBoard and Weights & Biases if asked for."""

import importlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fd_jax.buckets import BucketPath, GrowingObject
from fd_jax.errors import InputError
from fd_jax.files import atomic_file
from fd_jax.training.config import LogConfig

FILE_NAME = "metrics.jsonl"


def check_packages(config: LogConfig, workdir: Path) -> None:
    """Raises InputError if a package is missing that the config asks for."""
    if config.tensorboard and isinstance(workdir, BucketPath):
        raise InputError(
            f"--log.tensorboard writes to a disk, but the run is in {workdir}: expected "
            f"--log.wandb, or the lines of {FILE_NAME}"
        )
    if config.tensorboard:
        require("tensorboardX", "--log.tensorboard")
    if config.wandb is not None:
        require("wandb", "--log.wandb")


def require(package: str, option: str) -> ModuleType:
    """Imports an optional package. Raises InputError with the command that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{option} needs the package {package}, which is not installed: pip install {package}"
        ) from error


class MetricsWriter:
    """Writes metrics. Used by the first process alone.

    Args:
        workdir: Folder of the run.
        step: Number of steps done. Lines of later steps, which a killed run left, go.
        tensorboard: Whether to write to WORKDIR/tensorboard.
        wandb: Project of Weights & Biases.
        config: Config of the run.

    Raises:
        InputError: An optional package is missing.
    """

    def __init__(
        self,
        workdir: Path,
        step: int,
        *,
        tensorboard: bool = False,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        self._board = self._run = None
        if tensorboard:
            board = require("tensorboardX", "--log.tensorboard")
            self._board = board.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        if wandb is not None:
            # The same identity after a resume.
            self._run = require("wandb", "--log.wandb").init(
                project=wandb, id=_identity(workdir), resume="allow", config=dict(config or {})
            )
        path = workdir / FILE_NAME
        _drop_later(path, step)
        is_object = isinstance(path, BucketPath)
        self._file = GrowingObject(path) if is_object else path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Writes the metrics of a step. None and values that are not finite become null in JSON."""
        known = {
            name: value if value is not None and math.isfinite(value) else None
            for name, value in metrics.items()
        }
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()
        known = {name: value for name, value in known.items() if value is not None}
        if self._board is not None:
            for name, value in known.items():
                self._board.add_scalar(name, value, step)
        if self._run is not None:
            self._run.log(known, step=step)

    def save(self) -> None:
        """Stores all lines, so that no checkpoint is newer than its metrics."""
        if isinstance(self._file, GrowingObject):
            self._file.upload()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._run is not None:
            self._run.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads the lines of a metrics file, except for a last one that was cut short."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _drop_later(path: Path, step: int) -> None:
    if not path.exists():
        return
    try:
        kept = [line for line in read_metrics(path) if line["step"] <= step]
    except (ValueError, TypeError, LookupError) as error:  # zeros, after a power failure
        aside = path.with_name(f"metrics.damaged_{step}.jsonl")
        path.rename(aside)
        warnings.warn(f"{path} is damaged, and moved to {aside}: {error}", stacklevel=3)
        return
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


def _identity(workdir: Path) -> str:
    path = workdir / "wandb_id"
    if not path.exists():
        path.write_text(os.urandom(8).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
