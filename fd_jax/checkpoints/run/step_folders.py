"""Folders of checkpoints, one per step: which are there, which are whole, which is the newest."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import orbax.checkpoint as ocp

from fd_jax.checkpoints.errors import DamagedError, damage, file_errors
from fd_jax.checkpoints.run.orbax_arrays import gather, handler
from fd_jax.checkpoints.run.plain_paths import plain_path
from fd_jax.errors import CheckpointError

# What the folder of a step holds.
TRAIN, EMA, META = "train", "ema", "meta"
META_FILE = "metadata"

_Result = TypeVar("_Result")


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, maybe none, damaged ones included."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def check_whole(folder: Path, items: Collection[str]) -> set[str]:
    """Returns what a checkpoint holds, as Orbax noted when it was complete.

    Args:
        folder: Of one step.
        items: What it must hold.

    Raises:
        DamagedError: Files are missing, or the notes are damaged.
        CheckpointError: It was saved without one of the items.
    """
    with damage(folder):
        held = set(json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["item_handlers"])
        (folder / "commit_success.txt").read_bytes()
        # Read by Orbax whenever a run begins.
        if "metrics" in held:
            json.loads((folder / "metrics" / "metrics").read_bytes())
    if missing := sorted(item for item in held if not (folder / item).is_dir()):
        raise DamagedError(f"{folder} lacks {missing}")
    if absent := sorted(set(items) - held):
        raise CheckpointError(f"{folder} was saved without {absent}")
    return held


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint seems complete; its arrays are not read."""
    try:
        check_whole(folder, ())
    except DamagedError:
        return False
    return True


def move_aside(folder: Path, where: Path) -> None:
    """Moves a damaged checkpoint away, so that its step can be saved again.

    Args:
        folder: The checkpoint.
        where: The folder to move it to.

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
        folder: The checkpoints.
        steps: Those to try.
        read: Reads that of one step. A DamagedError is reported, and the one before is tried.
        together: Whether all processes call this, and are to read the same checkpoint.

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
    """Returns what writes checkpoints to a folder, and deletes those that are not to be kept.

    Args:
        folder: The checkpoints.
        keep_latest: How many of the latest to keep.
        keep_every: Steps of which multiples are kept.
        metric: Of which the checkpoint with the lowest value is kept.
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
        # Without these, metrics are not written, and the best is forgotten on resuming.
        best = {"best_fn": value, "best_mode": "min"}
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,  # of a save that was interrupted
        **best,
    )
    handlers = {TRAIN: handler(), EMA: handler(), META: ocp.JsonCheckpointHandler(META_FILE)}
    return ocp.CheckpointManager(plain_path(folder), options=options, item_handlers=handlers)
