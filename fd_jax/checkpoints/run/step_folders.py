"""Folders of checkpoints, one per step: list them, check them, find the newest."""

import itertools
import math
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint as ocp

from fd_jax.buckets import BucketPath
from fd_jax.checkpoints.errors import DamagedError, damage, file_errors
from fd_jax.checkpoints.run.orbax_arrays import gather, handler
from fd_jax.checkpoints.run.orbax_layout import COMMIT, items_of
from fd_jax.errors import CheckpointError
from fd_jax.plain_paths import plain_path

# Items in the folder of a step.
TRAIN, EMA, META = "train", "ema", "meta"
META_FILE = "metadata"

_Result = TypeVar("_Result")


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, maybe none, damaged ones included."""
    if not folder.is_dir():
        return []
    found = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    if isinstance(folder, BucketPath):
        # On disk a save ends with a rename, in a bucket with this file: others are unfinished.
        return [step for step in found if (folder / str(step) / COMMIT).exists()]
    return found


def check_whole(folder: Path, items: Collection[str]) -> set[str]:
    """Checks that a checkpoint is complete; returns the names of its items.

    Args:
        folder: Folder of one step.
        items: Items it must hold.

    Raises:
        DamagedError: Files are missing, or Orbax's own metadata is damaged.
        CheckpointError: It was saved without one of the items.
    """
    with damage(folder):
        held = items_of(folder)
    if missing := sorted(item for item in held if not (folder / item).is_dir()):
        raise DamagedError(f"{folder} lacks {missing}")
    if absent := sorted(set(items) - held):
        raise CheckpointError(f"{folder} was saved without {absent}")
    return held


def is_whole(folder: Path) -> bool:
    """Returns whether a checkpoint is complete, without reading its arrays."""
    try:
        check_whole(folder, ())
    except DamagedError:
        return False
    return True


def move_aside(folder: Path, where: Path) -> None:
    """Moves a damaged checkpoint to another folder, so that its step can be saved again.

    Args:
        folder: Folder of the checkpoint.
        where: Folder to move it to.

    Raises:
        CheckpointError: It cannot be moved.
    """
    names = itertools.chain([folder.name], (f"{folder.name}.{i}" for i in itertools.count(1)))
    place = next(where / name for name in names if not (where / name).exists())
    with file_errors(f"{folder} is damaged, but cannot be moved to {place}"):
        where.mkdir(exist_ok=True)
        folder.rename(place)
    warnings.warn(f"{folder} is damaged, and moved to {place}", stacklevel=3)


def newest(
    folder: Path,
    steps: Collection[int],
    read: Callable[[Path], _Result],
    *,
    together: bool = True,
) -> tuple[int, _Result] | None:
    """Returns step and content of the newest checkpoint that can be read; None if there is none.

    Args:
        folder: Folder of the checkpoints.
        steps: Steps to try.
        read: Reads the checkpoint in a folder. If it raises DamagedError, that is reported, and
            the previous checkpoint is tried.
        together: Whether all processes call this, and have to read the same checkpoint.

    Raises:
        CheckpointError: There are checkpoints, but none can be read.
    """
    ask = gather if together else lambda number: [number]
    left, reasons = sorted(steps), []
    while True:
        offers = ask(left[-1] if left else -1)
        if max(offers) < 0 and not reasons:
            return None
        if (step := min(offers)) < 0:
            reasons = reasons or ["other processes find some, expected a folder that all share"]
            raise CheckpointError(
                "\n".join([f"{folder} has no checkpoint that can be read:", *reasons])
            )
        result: Any = None
        reason = None
        try:
            result = read(folder / str(step))
        except DamagedError as error:
            reason = str(error)
        if all(ask(reason is None)):
            return step, result
        reasons.append(reason or f"{folder / str(step)}: another process cannot read it")
        warnings.warn(f"the checkpoint of step {step} is damaged: {reasons[-1]}", stacklevel=2)
        left = [other for other in left if other < step]


def open_manager(
    folder: Path, keep_latest: int, keep_every: int | None, metric: str | None
) -> ocp.CheckpointManager:
    """Opens Orbax's manager, which writes checkpoints and deletes those not to be kept.

    Args:
        folder: Folder of the checkpoints.
        keep_latest: Number of latest checkpoints to keep.
        keep_every: Keep the checkpoints of all multiples of this step; None for no such rule.
        metric: Keep the checkpoint with the lowest value of this metric; None for no such rule.
    """

    def value(metrics: Mapping[str | None, float]) -> float:
        return metrics.get(metric, math.inf)

    policies = ocp.checkpoint_managers
    kept: list[Any] = [policies.LatestN(keep_latest)]
    best: dict[str, Any] = {}
    if keep_every is not None:
        kept.append(policies.EveryNSteps(keep_every))
    if metric is not None:
        kept.append(
            policies.BestN(
                get_metric_fn=value, n=1, reverse=True, keep_checkpoints_without_metrics=False
            )
        )
        # Without these, Orbax writes no metrics, and a resumed run does not know the best.
        best = {"best_fn": value, "best_mode": "min"}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,  # left by an interrupted save
        **best,
    )
    handlers = {TRAIN: handler(), EMA: handler(), META: ocp.JsonCheckpointHandler(META_FILE)}
    return ocp.CheckpointManager(
        os.fspath(plain_path(folder)), options=options, item_handlers=handlers
    )
