"""The training loop: steps, metrics, checkpoints, previews, and the end of a run."""

import contextlib
import math
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from fd_jax import distributed, sharding
from fd_jax.buckets import BucketPath
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.config import to_json
from fd_jax.files import write_json
from fd_jax.images.png import write_png
from fd_jax.numerics import seed_key
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig
from fd_jax.training.goodput import Goodput
from fd_jax.training.metrics import MetricsWriter
from fd_jax.training.prefetch import DevicePrefetcher
from fd_jax.training.rates import RateMeter
from fd_jax.training.run_lock import RunLock
from fd_jax.training.signals import SignalGuard
from fd_jax.training.step import TrainState
from fd_jax.training.tasks.base import Preview

Evaluate = Callable[[Flat, Flat], dict[str, float]]  # trained, frozen -> mean held-out losses


class NonFiniteError(FloatingPointError):
    """The loss or the norm of the gradient is not a finite number."""


class Pending(NamedTuple):
    """Metrics of a step that may still be running."""

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray  # items of the batch


class Loop:
    """Trains until the last step or a signal.

    Metrics of a step are read after the next one is dispatched, so that devices never wait for
    Python.

    Args:
        config: Config of the run.
        workdir: Folder of the run.
        mesh: Devices.
        state: State to start from. It is donated to the first step.
        frozen: Parameters that do not train.
        train_step: Jitted step: state, frozen, batch, key -> state, metrics.
        batches: Batches on the devices.
        checkpoints: Checkpoints of the run.
        lock: Lock of the run's folder.
        item_ids: Function from item indices to ids.
        learning_rate: Function from the number of steps done to the learning rate.
        step_flops: Model FLOPs of a step.
        evaluate: Function that computes held-out losses; None without held-out batches.
        preview: Function that makes a sheet of images; None without previews.
        held_out: Held-out losses before the first step.
        restarts: How often the run was resumed.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        mesh: Mesh,
        *,
        state: TrainState,
        frozen: Flat,
        train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
        batches: DevicePrefetcher,
        checkpoints: RunCheckpoints,
        lock: RunLock,
        item_ids: Callable[[np.ndarray], Sequence[str]],
        learning_rate: Callable[[int], Any],
        step_flops: int,
        evaluate: Evaluate | None,
        preview: Preview | None,
        held_out: dict[str, float],
        restarts: int = 0,
    ):
        self.config = config
        self.workdir = workdir
        self.state = state
        self.frozen = frozen
        self._train_step = train_step
        self._batches = batches
        self._checkpoints = checkpoints
        self._lock = lock
        self._item_ids = item_ids
        self._learning_rate = learning_rate
        self._evaluate = evaluate
        self._preview = preview
        self._held_out = held_out
        self._step = int(sharding.to_host(state.step))
        self._rates = RateMeter(config.data.batch_size, step_flops, mesh)
        self._pending: Pending | None = None
        self._window: list[dict[str, float]] = []  # metrics since the last line of the log
        self._recent: list[float] = []  # losses since the last checkpoint
        self._writer: MetricsWriter | None = None
        self._is_first = jax.process_index() == 0
        self._is_profiled = False
        self._profile = workdir
        self._goodput = Goodput(restarts)

    def run(self) -> int | None:
        """Trains; returns the number of the signal that stopped the run early, or None.

        Raises:
            NonFiniteError: A loss is not finite. The last checkpoint is from before.
            CheckpointError: A checkpoint cannot be written.
        """
        if self._is_first:
            self._writer = MetricsWriter(
                self.workdir,
                self._step,
                tensorboard=self.config.log.tensorboard,
                wandb=self.config.log.wandb,
                config=to_json(self.config),
            )
        try:
            with SignalGuard() as guard, self._progress_bar() as bar:
                stopped = self._take_steps(guard, bar)
            with self._goodput.span("saving"):
                self._checkpoints.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
        if self._is_first:
            print(self._goodput.summary())
        return stopped if self._step < self.config.loop.num_steps else None

    def _take_steps(self, guard: SignalGuard, bar: tqdm) -> int | None:
        key = seed_key(self.config.loop.seed)
        num_steps = self.config.loop.num_steps
        compiles: contextlib.AbstractContextManager = self._goodput.span("compiling")  # once
        while self._step < num_steps:
            with self._goodput.span("waiting"):
                batch, index = next(self._batches)
            self._start_profile()
            with jax.profiler.StepTraceAnnotation("train", step_num=self._step + 1), compiles:
                self.state, metrics = self._train_step(self.state, self.frozen, batch, key)
            compiles = contextlib.nullcontext()
            self._step += 1
            self._lock.check()
            self._read_pending(bar)
            self._pending = Pending(self._step, metrics, index)
            self._stop_profile()
            stopped = guard.signal
            if self._checkpoints.reached_preemption(self._step):
                stopped = signal.SIGTERM
            if stopped is not None and self._step < num_steps:
                self._read_pending(bar)
                self._save()
                return stopped
            self._run_periodic(bar, is_last=self._step == num_steps)
            bar.update(1)
        self._read_pending(bar)
        return None

    def _progress_bar(self) -> tqdm:
        return tqdm(
            desc="training",
            initial=self._step,
            total=self.config.loop.num_steps,
            unit=" steps",
            disable=not self._is_first,
            mininterval=1.0,
        )

    def _run_periodic(self, bar: tqdm, *, is_last: bool) -> None:
        """Evaluates, previews and saves where the step is due."""
        config = self.config.loop

        def is_due(every: int) -> bool:
            return bool(every) and (self._step % every == 0 or is_last)

        evaluates = self._evaluate is not None and is_due(config.eval_every)
        previews = self._preview is not None and is_due(config.preview_every)
        saves = is_due(config.checkpoint_every)
        if not (evaluates or previews or saves):
            return
        self._read_pending(bar)  # raises before parameters that are not finite are used
        start = time.perf_counter()
        with self._goodput.span("evaluating"):
            if evaluates:
                self._write_held_out()
            if previews:
                self._write_preview()
        if saves:
            self._save()
        self._rates.exclude(time.perf_counter() - start)

    @property
    def _sampled_params(self) -> Flat:
        """Parameters that sampling will use: EMA parameters, if there are any."""
        return self.state.ema_params or self.state.params

    def _write_held_out(self) -> None:
        assert self._evaluate is not None
        self._held_out = self._evaluate(self._sampled_params, self.frozen)
        if self._writer is not None:
            line = {f"held_out_{name}": value for name, value in self._held_out.items()}
            self._writer.write(self._step, line)

    def _write_preview(self) -> None:
        assert self._preview is not None
        sheet = self._preview(self._sampled_params, self.frozen)
        if self._is_first:
            folder = self.workdir / "previews"
            folder.mkdir(exist_ok=True)
            settings = {"step": self._step, "config": to_json(self.config)}
            write_png(folder / f"{self._step:08d}.png", sheet, settings, overwrite=True)

    def _save(self) -> None:
        # The best checkpoint has the lowest held-out loss, or training loss without held-out data.
        loss = self._held_out.get("loss")
        if loss is None and self._recent:
            loss = float(np.mean(self._recent))
        self._recent = []
        with self._goodput.span("saving"):
            self._start_save(loss)

    def _start_save(self, loss: float | None) -> None:
        if self._writer is not None:
            self._writer.save()
        self._checkpoints.save(
            self._step,
            {
                "step": self.state.step,
                "params": self.state.params,
                "opt_state": self.state.opt_state,
            },
            self.state.ema_params,
            {
                "position": self._step * self.config.data.batch_size,
                "held_out": self._held_out,
                "restarts": self._goodput.restarts,
                "versions": distributed.versions(),
            },
            None if loss is None else {"loss": loss},
        )

    def _read_pending(self, bar: tqdm) -> None:
        """Reads the metrics of the last step once it is done."""
        if self._pending is None:
            return
        step, arrays, index = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
            self._raise_not_finite(step, metrics, index)
        self._recent.append(metrics["loss"])
        self._window.append(metrics)
        self._rates.start(step, self._batches.waited)
        if step % self.config.loop.log_every == 0 or step == self.config.loop.num_steps:
            self._log(step, bar)

    def _log(self, step: int, bar: tqdm) -> None:
        """Writes the mean metrics of the steps since the last line."""
        window = self._window
        self._window = []
        line = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
        line["learning_rate"] = float(self._learning_rate(step - 1))
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        rates = self._rates.read(step, self._batches.waited)
        if self._writer is not None:
            self._writer.write(step, line | rates | self._goodput.read())

    def _raise_not_finite(self, step: int, metrics: dict[str, float], index: np.ndarray) -> None:
        rows = multihost_utils.process_allgather(index) if jax.process_count() > 1 else index
        ids = list(self._item_ids(rows.reshape(-1)))
        path = self.workdir / f"not_finite_step_{step}.json"
        if self._is_first:
            shown = {name: str(value) for name, value in metrics.items()}
            write_json(path, {"step": step, "metrics": shown, "ids": ids})
        self._checkpoints.wait()
        raise NonFiniteError(
            f"step {step}: the loss is {metrics['loss']} and the gradient's norm "
            f"{metrics['gradient_norm']}, expected finite numbers. The ids of the batch are in "
            f"{path}; the last checkpoint is that of step {self._checkpoints.latest_step()}"
        )

    def _start_profile(self) -> None:
        if self.config.loop.profile is not None and self._step + 1 == self.config.loop.profile[0]:
            self._profile = self.workdir / "profile"
            if isinstance(self.workdir, BucketPath):
                self._profile = Path(tempfile.mkdtemp())
            jax.profiler.start_trace(str(self._profile))
            self._is_profiled = True

    def _stop_profile(self) -> None:
        if not self._is_profiled or self.config.loop.profile is None:
            return
        if self._step >= min(self.config.loop.profile[1], self.config.loop.num_steps):
            jax.block_until_ready(self.state.step)
            jax.profiler.stop_trace()
            if isinstance(self.workdir, BucketPath):
                (self.workdir / "profile").upload_folder(self._profile)
                shutil.rmtree(self._profile)
            self._is_profiled = False
