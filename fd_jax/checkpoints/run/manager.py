"""Checkpoints of a training run: saved while it trains, read to resume it or to sample."""

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
from fd_jax.checkpoints.run import array_checksums, orbax_arrays
from fd_jax.checkpoints.run.model_json import CHECKPOINTS, FROZEN, is_run, read_model
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
from fd_jax.files import read_json, to_path, write_json
from fd_jax.params import Flat, flat, nested
from fd_jax.plain_paths import plain_path
from fd_jax.types import Params

DAMAGED = "damaged"  # folder of a run for checkpoints that cannot be read
CHECKSUMS = "checksums"  # of arrays: a key of a checkpoint's metadata, a file in the frozen folder
PARAMS = "params/"  # prefix of the parameters' names among the arrays of the training state


class RunCheckpoints:
    """Writes the checkpoints of a run in the background, and deletes those not to be kept.

    Args:
        run: Folder of the run.
        keep_latest: Number of latest checkpoints to keep.
        keep_every: Keep the checkpoints of all multiples of this step; None for no such rule.
        best_metric: Keep the checkpoint with the lowest value of this metric; None for no such
            rule.
    """

    def __init__(
        self,
        run: str | os.PathLike,
        *,
        keep_latest: int = 2,
        keep_every: int | None = None,
        best_metric: str | None = "loss",
    ):
        self.run = to_path(run).absolute()
        self.folder = self.run / CHECKPOINTS
        self._keep_latest = keep_latest
        self._keep_every = keep_every
        self._best_metric = best_metric

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Opened late: it fails on damaged checkpoints, which `restore` moves away.
        with file_errors(f"{self.folder}: cannot open the checkpoints"):
            self.folder.mkdir(parents=True, exist_ok=True)
            return open_manager(self.folder, self._keep_latest, self._keep_every, self._best_metric)

    def reached_preemption(self, step: int) -> bool:
        """Returns whether all processes have to save and stop after this step.

        Every process calls it after each step. A SIGTERM to one of several processes makes it true
        on all of them; a single process has to handle the signal itself.
        """
        return ocp.utils.reached_preemption(step)

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, including one that is being written."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        train: PyTree,
        ema: Flat,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Starts saving a checkpoint once the previous save is done; arrays may be donated then.

        Args:
            step: Number of steps done.
            train: Training state.
            ema: EMA parameters by path, empty where the run keeps none.
            meta: Content of the metadata, in JSON's types.
            metrics: Metrics of this step.

        Returns:
            False if the step already has a checkpoint, which stays as it is.

        Raises:
            CheckpointError: This save or the previous one failed. Older checkpoints stay whole.
        """
        if step in self._manager.all_steps():
            return False
        leaves = orbax_arrays.by_path(train)
        sums = {TRAIN: array_checksums.checksums(leaves), EMA: array_checksums.checksums(ema)}
        items = {
            TRAIN: orbax_arrays.save_args(leaves),
            META: ocp.args.JsonSave({**meta, CHECKSUMS: sums}),
        }
        if ema:
            items[EMA] = orbax_arrays.save_args(ema)
        # A checkpoint whose metric is missing or not finite is never the best.
        given = dict(metrics or {})
        is_ranked = math.isfinite(given.get(self._best_metric or "", math.nan))
        kept = given if is_ranked else None
        with self._save_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), metrics=kept, force=True)
        return True

    def wait(self) -> None:
        """Waits for the last save. Raises CheckpointError if it failed."""
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, and stops its threads. Raises CheckpointError if it failed."""
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

        A damaged checkpoint is reported, and moved to RUN/damaged once an older one has been read.
        All processes read the same checkpoint.

        Args:
            abstract_train: Shapes, dtypes and shardings of the training state, in the structure
                that was saved.
            abstract_ema: Shapes, dtypes and shardings of the EMA parameters.

        Raises:
            CheckpointError: All checkpoints are damaged, or the newest is of another architecture.
        """
        expected = {TRAIN: orbax_arrays.by_path(abstract_train), EMA: dict(abstract_ema)}

        def read(folder: Path) -> tuple[PyTree, Flat, dict[str, Any]]:
            items = [TRAIN, META, EMA] if abstract_ema else [TRAIN, META]
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

        self.close()  # the folder is about to change under the manager
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
    """Returns the metadata of a checkpoint, and the checksums of its arrays by item."""
    path = folder / META / META_FILE
    with orbax_arrays.damage(path):
        meta = json.loads(path.read_bytes())
        if not isinstance(meta, dict):
            raise ValueError(f"found a {type(meta).__name__}, expected a JSON object")
        sums = meta.pop(CHECKSUMS, {})  # version 0.1 wrote none
        if not isinstance(sums, dict) or not all(isinstance(x, dict) for x in sums.values()):
            raise ValueError(f"{CHECKSUMS} are {sums!r:.80}, expected those of arrays by name")
    return meta, sums


def _frozen_checksums(run: Path) -> dict[str, Any]:
    path = run / FROZEN / CHECKSUMS
    return read_json(path) if path.exists() else {}


def save_frozen(run: str | os.PathLike, params: Flat) -> None:
    """Saves the frozen parameters by path, unless the run has a checkpoint already.

    All processes call it. Raises CheckpointError if they cannot be written.
    """
    folder = to_path(run).absolute() / FROZEN
    if folder.exists() and steps_in(folder.parent / CHECKPOINTS):
        return
    with (
        file_errors(f"{folder}: cannot save parameters"),
        ocp.Checkpointer(orbax_arrays.handler()) as checkpointer,
    ):
        checkpointer.save(
            os.fspath(plain_path(folder)), args=orbax_arrays.save_args(params), force=True
        )
    sums = array_checksums.checksums(params)
    if jax.process_index() == 0:
        write_json(folder / CHECKSUMS, sums)


def read_frozen(run: str | os.PathLike, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> Flat:
    """Reads the parameters that `save_frozen` saved. Raises CheckpointError.

    Args:
        run: Folder of the run.
        abstract: Shapes, dtypes and shardings by path.
    """
    folder = to_path(run).absolute() / FROZEN
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
    """Reads the parameters of a run by part, trained and frozen ones.

    Args:
        run: Folder of the run.
        placement: Dtype and sharding. If it covers several processes, all of them call this.
        ema: Whether to read EMA parameters, if the run keeps them.
        step: Step of the checkpoint, by default the newest that is not damaged.
        wanted: Parts to read, by default all of the model.
        abstract: Expected shapes of these parts; None checks none.

    Raises:
        CheckpointError: There is no such checkpoint, all are damaged, or of another architecture.
    """
    if not is_run(run):
        raise CheckpointError(f"{run} is no folder of a training run")
    model = read_model(run)
    run = to_path(run).absolute()
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
    """Selects the leaves of some parts whose names have a prefix, and removes the prefix."""
    cut = {name[len(prefix) :]: leaf for name, leaf in found.items() if name.startswith(prefix)}
    return {name: leaf for name, leaf in cut.items() if name.split("/")[0] in parts}


def _target(name: str, leaf: Any, placement: Placement) -> jax.ShapeDtypeStruct:
    path = tuple(int(level) if level.isdecimal() else level for level in name.split("/")[1:])
    dtype = placement.dtype if len(leaf.shape) > 1 else jax.numpy.float32
    where = placement.sharding(path, leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=where)
