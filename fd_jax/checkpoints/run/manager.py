"""Checkpoints of a training run: saved while it trains, and read where it goes on."""

import contextlib
import json
import math
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from fd_jax.checkpoints.errors import file_errors
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run import orbax_arrays
from fd_jax.checkpoints.run.model_json import CHECKPOINTS, FROZEN, is_run, read_model
from fd_jax.checkpoints.run.plain_paths import plain_path
from fd_jax.checkpoints.run.step_folders import (
    EMA,
    META,
    META_FILE,
    TRAIN,
    check_whole,
    is_whole,
    move_aside,
    newest,
    open_manager,
    steps_in,
)
from fd_jax.errors import CheckpointError
from fd_jax.files import read_json, write_json
from fd_jax.params import Flat, flat, nested
from fd_jax.types import Params

DAMAGED = "damaged"  # folder of a run for checkpoints that cannot be read
CHECKSUMS = "checksums"  # of the arrays: a key of the metadata, a file in the frozen folder
PARAMS = "params/"  # prefix of the parameters' names among the arrays of the training state


class RunCheckpoints:
    """The checkpoints of a run, written in the background.

    Kept are the latest, every n-th step's, and the best one.

    Args:
        run: Folder of the run.
        save_every: Steps from one checkpoint to the next.
        keep_latest: How many of the latest to keep.
        keep_every: Of which steps to keep checkpoints for ever: multiples of it.
        best_metric: Metric of which the checkpoint with the lowest value is kept.
    """

    def __init__(
        self,
        run: str | os.PathLike,
        *,
        save_every: int,
        keep_latest: int = 2,
        keep_every: int | None = None,
        best_metric: str | None = "loss",
    ):
        self.run, self.save_every = Path(run).absolute(), save_every
        self.folder = self.run / CHECKPOINTS
        self._keep = keep_latest, keep_every, best_metric

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Made late: it would stumble over damaged checkpoints, which `restore` moves away.
        with file_errors(f"{self.folder}: cannot open the checkpoints"):
            self.folder.mkdir(parents=True, exist_ok=True)
            return open_manager(self.folder, *self._keep)

    def reached_preemption(self, step: int) -> bool:
        """Whether all processes are to save and stop after this step.

        To be asked after each step, on every process. With several processes a SIGTERM to any of
        them leads here; one process alone has to listen itself.
        """
        return ocp.utils.reached_preemption(step)

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due after this step, by the interval or for a preemption."""
        return step % self.save_every == 0 or self.reached_preemption(step)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, one being written included."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        train: PyTree,
        ema: Flat,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
        *,
        force: bool = False,
    ) -> bool:
        """Begins to save, as soon as the save before is done. The arrays may be donated then.

        Args:
            step: Steps done.
            train: What training goes on from.
            ema: Averaged parameters by path; empty where there are none.
            meta: What else to remember, as JSON has it.
            metrics: Those of this step.
            force: Whether to save though `should_save` says no.

        Returns:
            Whether there was something to save: not if the step has its checkpoint.

        Raises:
            CheckpointError: This or the save before failed. Older checkpoints are as they were.
        """
        if not (force or self.should_save(step)) or step in self._manager.all_steps():
            return False
        leaves = orbax_arrays.by_path(train)
        sums = {TRAIN: orbax_arrays.checksums(leaves), EMA: orbax_arrays.checksums(ema)}
        items = {
            TRAIN: orbax_arrays.save_args(leaves),
            META: ocp.args.JsonSave({**meta, CHECKSUMS: sums}),
        }
        if ema:
            items[EMA] = orbax_arrays.save_args(ema)
        # Without the metric that decides, or without a number, it is not the best.
        given = dict(metrics or {})
        is_ranked = math.isfinite(given.get(self._keep[2] or "", math.nan))
        kept = given if is_ranked else None
        with self._save_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=kept, force=True)
        return True

    def wait(self) -> None:
        """Waits until the last save is done. Raises CheckpointError if it failed."""
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and stops the threads that save. Raises CheckpointError if a save failed."""
        if (manager := self.__dict__.pop("_manager", None)) is None:
            return
        with self._save_errors():
            try:
                manager.wait_until_finished()
            finally:
                manager.close()

    def _save_errors(self) -> contextlib.AbstractContextManager[None]:
        return file_errors(f"{self.folder}: cannot save a checkpoint")

    def restore(
        self, abstract_train: PyTree, abstract_ema: Mapping[str, jax.ShapeDtypeStruct]
    ) -> tuple[int, PyTree, Flat, dict[str, Any]] | None:
        """Returns step, train, ema and meta of the newest checkpoint; None before the first.

        A checkpoint that is damaged is reported, and moved to RUN/damaged once an older one is
        read in its place. All processes read the same one.

        Args:
            abstract_train: Shapes, dtypes and shardings, in the structure that was saved.
            abstract_ema: The same of the averages.

        Raises:
            CheckpointError: All checkpoints are damaged, or the newest is of another architecture.
        """
        expected = {TRAIN: orbax_arrays.by_path(abstract_train), EMA: dict(abstract_ema)}

        def read(folder: Path) -> tuple[PyTree, Flat, dict[str, Any]]:
            items = [TRAIN, META] + [EMA] * bool(abstract_ema)
            check_whole(folder, items)
            for item in items:
                if item in expected:
                    found = orbax_arrays.describe(folder / item)
                    orbax_arrays.check_same(found, expected[item], str(folder / item))
            meta, sums = _read_meta(folder)
            train = orbax_arrays.read(folder / TRAIN, expected[TRAIN], expected=sums.get(TRAIN))
            leaves = [train[name] for name in expected[TRAIN]]
            ema = orbax_arrays.read(folder / EMA, expected[EMA], expected=sums.get(EMA))
            structure = jax.tree.structure(abstract_train)
            return jax.tree.unflatten(structure, leaves), ema, meta

        self.close()  # what it knows of the folder may change
        found = newest(self.folder, steps_in(self.folder), read)
        if found is None:
            return None
        step, (train, ema, meta) = found
        if jax.process_index() == 0:
            for other in steps_in(self.folder):
                if other > step or not is_whole(self.folder / str(other)):
                    move_aside(self.folder / str(other), self.run / DAMAGED)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("fd_jax:moved_aside")
        return step, train, ema, meta


def _read_meta(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what was saved beside the arrays of a checkpoint, and their checksums."""
    path = folder / META / META_FILE
    with orbax_arrays.damage(path):
        meta = json.loads(path.read_bytes())
        if not isinstance(meta, dict):
            raise ValueError(f"found a {type(meta).__name__}, expected a JSON object")
    return meta, meta.pop(CHECKSUMS, {})  # of version 0.1 there are none


def _frozen_checksums(run: Path) -> dict[str, int]:
    path = run / FROZEN / CHECKSUMS
    return read_json(path) if path.exists() else {}


def save_frozen(run: str | os.PathLike, params: Flat) -> None:
    """Saves the parameters that do not train, by path; not again once there is a checkpoint.

    All processes call this. Raises CheckpointError if they cannot be written.
    """
    folder = Path(run).absolute() / FROZEN
    if folder.exists() and steps_in(folder.parent / CHECKPOINTS):
        return
    with (
        file_errors(f"{folder}: cannot save parameters"),
        ocp.Checkpointer(orbax_arrays.handler()) as checkpointer,
    ):
        checkpointer.save(plain_path(folder), args=orbax_arrays.save_args(params), force=True)
    sums = orbax_arrays.checksums(params)
    if jax.process_index() == 0:
        write_json(folder / CHECKSUMS, sums)


def read_frozen(run: str | os.PathLike, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Flat:
    """Reads what `save_frozen` saved. Raises CheckpointError.

    Args:
        run: Folder of the run.
        abstract: Shapes, dtypes and shardings by path.
    """
    folder = Path(run).absolute() / FROZEN
    orbax_arrays.check_same(orbax_arrays.describe(folder), abstract, str(folder))
    return orbax_arrays.read(folder, abstract, expected=_frozen_checksums(folder.parent))


def read_params(
    run: str | os.PathLike,
    *,
    placement: Placement,
    ema: bool = True,
    step: int | None = None,
    wanted: Collection[str] | None = None,
    abstract: Mapping[str, Params] | None = None,
) -> dict[str, Params]:
    """Reads the parameters of a run by part, those that were trained and those that were not.

    Args:
        run: Folder of the run.
        placement: Where they are to live. If that is over several processes, all must call this.
        ema: Whether to read averages, if the run keeps them.
        step: Of which checkpoint; by default the newest that is not damaged.
        wanted: Parts to read, by default all of the model.
        abstract: Shapes of these parts, to be checked.

    Raises:
        CheckpointError: There is no such checkpoint, all are damaged, or of another architecture.
    """
    if not is_run(run):
        raise CheckpointError(f"{run} is no folder of a training run")
    model = read_model(run)
    run = Path(run).absolute()
    wanted = list(model.parts) if wanted is None else list(wanted)
    if unknown := [part for part in wanted if part not in model.parts]:
        raise CheckpointError(f"{run} trains a {model.task}, which has no {unknown}")
    folder = run / CHECKPOINTS
    steps = steps_in(folder)
    if not steps or (step is not None and step not in steps):
        wish = "one" if step is None else f"that of step {step}"
        raise CheckpointError(f"{folder} has checkpoints of the steps {steps}, expected {wish}")

    def read(folder: Path) -> Flat:
        averaged = ema and EMA in check_whole(folder, [TRAIN, META])
        item, prefix = (EMA, "") if averaged else (TRAIN, PARAMS)
        trained = _of_parts(orbax_arrays.describe(folder / item), wanted, prefix)
        if abstract is not None:
            expected = flat({part: abstract[part] for part in wanted})
            orbax_arrays.check_same(frozen | trained, expected, str(run))
        targets = {prefix + name: _target(name, x, placement) for name, x in trained.items()}
        _, sums = _read_meta(folder)
        found = orbax_arrays.read(folder / item, targets, placement.advance, sums.get(item))
        return _of_parts(found, wanted, prefix)

    frozen = _of_parts(orbax_arrays.describe(run / FROZEN), wanted)
    targets = {name: _target(name, leaf, placement) for name, leaf in frozen.items()}
    sums = _frozen_checksums(run)
    values = orbax_arrays.read(run / FROZEN, targets, placement.advance, sums)
    together = not placement.sharding((), ()).is_fully_addressable
    found: Any = newest(folder, steps if step is None else [step], read, together=together)
    _, trained = found
    found = nested(values | trained)
    if missing := [part for part in wanted if part not in found]:
        raise CheckpointError(f"{run} lacks the parameters of {missing}")
    return {part: found[part] for part in wanted}


def _of_parts(found: Mapping[str, Any], parts: Collection[str], prefix: str = "") -> Flat:
    """Returns what belongs to some parts of the model, and begins with a prefix, without it."""
    cut = {name[len(prefix) :]: leaf for name, leaf in found.items() if name.startswith(prefix)}
    return {name: leaf for name, leaf in cut.items() if name.split("/")[0] in parts}


def _target(name: str, leaf: Any, placement: Placement) -> jax.ShapeDtypeStruct:
    path = tuple(int(level) if level.isdecimal() else level for level in name.split("/")[1:])
    dtype = placement.dtype if len(leaf.shape) > 1 else jax.numpy.float32
    where = placement.sharding(path, leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where)
