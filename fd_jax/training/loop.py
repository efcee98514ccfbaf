"""The loop: steps, metrics, checkpoints, and what is to be done when it goes wrong."""

import json
import math
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from fd_jax import distributed, sharding
from fd_jax.checkpoints.run.manager import RunCheckpoints
from fd_jax.config import to_json
from fd_jax.images.png import write_png
from fd_jax.params import Flat
from fd_jax.training.config import TrainConfig
from fd_jax.training.flops import peak_flops
from fd_jax.training.metrics import MetricsWriter
from fd_jax.training.prefetch import DevicePrefetcher
from fd_jax.training.step import TrainState


class NonFiniteError(FloatingPointError):
    """The loss, or the norm of the gradient, is no finite number."""


class Pending(NamedTuple):
    """Metrics of a step that may still be running."""

    step: int
    metrics: dict[str, jax.Array]
    index: np.ndarray


class Mark(NamedTuple):
    """A point in the run, from which rates are measured."""

    time: float
    waited: float  # seconds, for data, so far
    step: int


class Stop:
    """Notes signals that ask to stop, so that a checkpoint can be written first."""

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        # With several processes JAX listens to SIGTERM, and tells all of them of it.
        signals = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
        for number in signals:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if self.signal is not None:  # the second time means now
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.signal = number


class Tools(NamedTuple):
    """What the loop works with."""

    train_step: Any  # compiled: state, frozen, batch, key -> state, metrics
    evaluate: Any  # trained, frozen -> metrics of held-out examples; None without any
    preview: Any  # trained, frozen -> a sheet of pictures; None without prompts
    store: RunCheckpoints
    feed: DevicePrefetcher
    name: Any  # numbers of the data's items -> their ids
    learning_rate: Any  # steps done -> rate
    flops: int  # of a step, as the model asks for them


class Loop:
    """Trains until the last step, or until it is told to stop.

    Metrics of a step are read once the next one is on its way, so that devices never wait for
    Python.

    Args:
        config: Config of the run.
        workdir: Its folder.
        mesh: Devices.
        tools: What it works with.
        state: To begin with.
        frozen: Parameters that do not train.
        meta: What the checkpoint that the run goes on from says besides; empty at the start.
    """

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        mesh: Mesh,
        tools: Tools,
        state: TrainState,
        frozen: Flat,
        meta: dict[str, Any],
    ):
        self.config, self.workdir, self.tools = config, workdir, tools
        self.state, self.frozen = state, frozen
        self._mesh = mesh
        self._step = int(sharding.to_host(state.step))
        self._pending: Pending | None = None
        self._window: list[dict[str, float]] = []
        self._held_out: dict[str, float] = meta.get("held_out", {})
        self._recent: list[float] = []  # losses since the last checkpoint
        self._writer: MetricsWriter | None = None
        self._mark: Mark | None = None
        self._is_first, self._is_traced = jax.process_index() == 0, False

    def run(self) -> int | None:
        """Trains; returns the signal that stopped it early, if one did.

        Raises:
            NonFiniteError: A loss is not finite. The last checkpoint is from before.
            CheckpointError: A checkpoint cannot be written.
        """
        loop, config = self.config.loop, self.config
        if self._is_first:
            self._writer = MetricsWriter(
                self.workdir,
                self._step,
                tensorboard=config.log.tensorboard,
                wandb=config.log.wandb,
                config=to_json(config),
            )
        try:
            with Stop() as stop, self._bar() as bar:
                stopped = self._steps(stop, bar)
            self.tools.store.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
        return stopped if self._step < loop.num_steps else None

    def _steps(self, stop: Stop, bar: tqdm) -> int | None:
        """Takes all steps; returns the signal that stopped it early, if one did."""
        key = jax.random.key(self.config.loop.seed)
        num_steps, store = self.config.loop.num_steps, self.tools.store
        while self._step < num_steps:
            fed = next(self.tools.feed)
            self._trace(begins=True)
            with jax.profiler.StepTraceAnnotation("train", step_num=self._step + 1):
                self.state, metrics = self.tools.train_step(self.state, self.frozen, fed.batch, key)
            self._step += 1
            self._read_pending(bar)
            self._pending = Pending(self._step, metrics, fed.index)
            self._trace(begins=False)
            stopped = signal.SIGTERM if store.reached_preemption(self._step) else stop.signal
            if stopped is not None and self._step < num_steps:
                self._read_pending(bar)
                self._save()
                return stopped
            self._at_intervals(bar, is_last=self._step == num_steps)
            bar.update(1)
        self._read_pending(bar)
        return None

    def _bar(self) -> tqdm:
        return tqdm(
            desc="training",
            initial=self._step,
            total=self.config.loop.num_steps,
            unit=" steps",
            disable=not self._is_first,
            mininterval=1.0,
        )

    def _at_intervals(self, bar: tqdm, *, is_last: bool) -> None:
        loop, tools = self.config.loop, self.tools

        def is_due(every: int) -> bool:
            return bool(every) and (self._step % every == 0 or is_last)

        evaluates = tools.evaluate is not None and is_due(loop.eval_every)
        previews = tools.preview is not None and is_due(loop.preview_every)
        saves = is_last or tools.store.should_save(self._step)
        if not (evaluates or previews or saves):
            return
        self._read_pending(bar)  # nothing that is not finite is measured or saved
        begin = time.perf_counter()
        shown = self.state.ema_params or self.state.params
        if evaluates:
            self._held_out = tools.evaluate(shown, self.frozen)
            line = {f"held_out_{name}": value for name, value in self._held_out.items()}
            if self._writer is not None:
                self._writer.write(self._step, line)
        if previews:
            sheet = tools.preview(shown, self.frozen)
            if self._is_first:
                folder = self.workdir / "previews"
                folder.mkdir(exist_ok=True)
                path = folder / f"{self._step:08d}.png"
                settings = {"step": self._step, "config": to_json(self.config)}
                write_png(path, sheet, settings, overwrite=True)
        if saves:
            self._save()
        # The time of a step does not count this.
        self._mark = self._mark._replace(time=self._mark.time + time.perf_counter() - begin)

    def _save(self) -> None:
        # The best checkpoint is that of the smallest held-out loss, if there is one.
        loss = self._held_out.get("loss", float(np.mean(self._recent)) if self._recent else None)
        self._recent = []
        self.tools.store.save(
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
                "versions": distributed.versions(),
            },
            None if loss is None else {"loss": loss},
            force=True,
        )

    def _read_pending(self, bar: tqdm) -> None:
        """Reads the metrics of the last step, once it is done."""
        if self._pending is None:
            return
        step, arrays, index = self._pending
        self._pending = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"])):
            self._give_up(step, metrics, index)
        self._recent.append(metrics["loss"])
        self._window.append(metrics)
        if self._mark is None:  # the first step compiles, and does not count
            self._mark = Mark(time.perf_counter(), self.tools.feed.waited, step)
        if step % self.config.loop.log_every == 0 or step == self.config.loop.num_steps:
            self._log(step, bar)

    def _log(self, step: int, bar: tqdm) -> None:
        """Writes the means over the steps since the last line."""
        window, self._window = self._window, []
        last, now = self._mark, Mark(time.perf_counter(), self.tools.feed.waited, step)
        self._mark = now
        rates = dict.fromkeys(("images", "flops", "wait", "utilization"))
        if steps := now.step - last.step:
            seconds = now.time - last.time
            rates["images"] = steps * self.config.data.batch_size / seconds
            rates["flops"] = steps * self.tools.flops / seconds
            rates["wait"] = (now.waited - last.waited) / seconds
            peak = peak_flops(self._mesh.devices.flat[0].device_kind)
            rates["utilization"] = peak and rates["flops"] / (peak * self._mesh.size)
        line = {name: float(np.mean([row[name] for row in window])) for name in window[0]}
        line |= {
            "learning_rate": float(self.tools.learning_rate(step - 1)),
            "images_per_second": rates["images"],
            "images_per_second_per_chip": rates["images"] and rates["images"] / self._mesh.size,
            "model_flops_per_second": rates["flops"],
            "model_flops_utilization": rates["utilization"],
            "data_wait_share": rates["wait"],
        }
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        if self._writer is not None:
            self._writer.write(step, line)

    def _give_up(self, step: int, metrics: dict[str, float], index: np.ndarray) -> None:
        rows = multihost_utils.process_allgather(index) if jax.process_count() > 1 else index
        ids = self.tools.name(rows.reshape(-1))
        path = self.workdir / f"not_finite_step_{step}.json"
        if self._is_first:
            found = {name: str(value) for name, value in metrics.items()}
            content = {"step": step, "metrics": found, "ids": ids}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        self.tools.store.wait()
        raise NonFiniteError(
            f"step {step}: the loss is {metrics['loss']} and the gradient's norm "
            f"{metrics['gradient_norm']}, expected finite numbers. The ids of the batch are in "
            f"{path}; the last checkpoint is that of step {self.tools.store.latest_step()}"
        )

    def _trace(self, *, begins: bool) -> None:
        """Begins or ends the trace for the profiler, if this is the step to do so."""
        first, last = self.config.loop.profile or (None, None)
        if begins and self._step + 1 == first:
            jax.profiler.start_trace(str(self.workdir / "profile"))
            self._is_traced = True
        if not begins and self._is_traced and self._step >= min(last, self.config.loop.num_steps):
            jax.block_until_ready(self.state.step)
            jax.profiler.stop_trace()
            self._is_traced = False
