"""Steps of fd_jax and of PyTorch that begin with the same weights and draw the same."""

import dataclasses
import resource
import time
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.peers import random_weights
from benchmarks.torch_step import Trainer
from configs import sdm_ffhq, sdm_small, tdm_ffhq, tdm_small
from fd_jax import distributed, params, sharding
from fd_jax.data.captions import MAX_TOKENS
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.training.config import ModelConfig, TrainConfig
from fd_jax.training.flops import abstract_batch, count_step_flops
from fd_jax.training.learner import make_learner, model_task
from fd_jax.training.prefetch import to_batch
from fd_jax.training.step import TrainState, init_state
from fd_jax.training.tasks.base import Batch, Draws, to_inputs
from fd_jax.training.trainer import jit_train_step
from fd_jax.types import Params

PEERS = ("fd_jax", "PyTorch diffusers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # PyTorch's


@dataclasses.dataclass(frozen=True)
class Trial:
    """Steps of one peer, in a process of its own."""

    peer: str
    kind: str
    batch_size: int
    full: bool = False  # size and dtype
    remat: str = "none"
    encoded: bool = False  # images and captions are encoded beforehand
    compiled: bool = False  # PyTorch's UNet
    steps: int = 6  # after the first

    def config(self) -> TrainConfig:
        """Settings as in configs/. All but the sizes are those of the full-size files."""
        full, small = {
            "sdm": (sdm_ffhq.CONFIG, sdm_small.CONFIG),
            "tdm": (tdm_ffhq.CONFIG, tdm_small.CONFIG),
        }[self.kind]
        base = full if self.full else small
        cache = Path("latent_cache") if self.encoded else None
        return dataclasses.replace(
            base,
            model=ModelConfig() if self.full else small.model,
            data=dataclasses.replace(base.data, batch_size=self.batch_size, latent_cache=cache),
            optimizer=full.optimizer,
            compute=dataclasses.replace(base.compute, remat=self.remat),
        )


class Task:
    """What both peers begin with: sizes, weights, a batch, and the draws of each step."""

    def __init__(self, trial: Trial):
        self.trial, config = trial, trial.config()
        self.config = config
        self.mesh = sharding.make_mesh()
        self.learner = make_learner(config, [])
        self.networks = self.learner.task.networks
        shapes = abstract_batch(self.learner.task, config.data).examples
        self.batch = random_batch(config.data, shapes)
        self.key = jax.random.key(config.loop.seed)

    @cached_property
    def params(self) -> dict[str, Params]:
        kind = self.trial.kind
        return {
            part: random_weights(
                getattr(self.networks, part).abstract, kind if part == "unet" else part
            )
            for part in self.learner.task.parts
        }

    def flops(self) -> int:
        """Of a step, as the model asks for them."""
        learner = self.learner
        state = TrainState(None, learner.trained, {}, None)
        return count_step_flops(model_task(learner.task), state, learner.frozen, self.config.data)

    def draws(self) -> list[Draws]:
        """What the steps draw, the first one included."""
        draw = self.learner.task.draw
        keys = [jax.random.fold_in(self.key, step) for step in range(1 + self.trial.steps)]
        return [jax.device_get(draw(key, self.batch)) for key in keys]


def random_batch(data: DataConfig, shapes: Example) -> Batch:
    """Examples of noise, with as many subjects as there is room for but for one row of eight."""
    rng = np.random.default_rng(0)
    count, side, small = data.batch_size, data.resolution, data.subject_resolution
    subjects = data.max_subjects
    columns = np.arange(side) * (subjects + 1) // side  # 0: background
    present = np.broadcast_to(np.arange(count)[:, None] % 8 != 7, (count, subjects))
    where = np.broadcast_to(1 + 2 * np.arange(subjects, dtype=np.int32), (count, subjects))

    def encoding(shape: jax.ShapeDtypeStruct | None) -> np.ndarray | None:
        if shape is None:
            return None
        found = rng.standard_normal(shape.shape, np.float32)
        # As bfloat16 is stored.
        return found.astype(jnp.bfloat16).view(np.uint16) if shape.dtype == np.uint16 else found

    image = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    examples = Example(
        image=image if shapes.image is not None else None,
        posterior=encoding(shapes.posterior),
        text=encoding(shapes.text),
        segment_map=np.broadcast_to(columns.astype(np.uint8), (count, side, side)).copy(),
        subject_pixels=rng.integers(0, 256, (count, subjects, small, small, 3), np.uint8),
        subject_ids=np.broadcast_to(np.arange(1, subjects + 1, dtype=np.uint8), present.shape),
        input_ids=rng.integers(0, 49406, (count, MAX_TOKENS)).astype(np.int32),
        subject_token_index=np.where(present, where, 0).astype(np.int32),
        has_subject=present.copy(),
        index=np.arange(count, dtype=np.int32),
    )
    return Batch(examples, np.arange(count, dtype=np.int32))


def our_steps(task: Task) -> Iterator[dict[str, float]]:
    """Takes steps of fd_jax, and yields the metrics of each once it is done."""
    learner, mesh = task.learner, task.mesh
    leaves = sharding.to_mesh(params.flat(task.params), sharding.replicated(mesh))
    trained = {path: leaves.pop(path) for path in learner.factors}
    frozen = jax.jit(partial(params.cast, dtype=task.networks.dtype))(leaves)
    make = partial(init_state, optimizer=learner.optimizer, keep_ema=False)
    layout = sharding.shardings(jax.eval_shape(make, trained), mesh)
    state = jax.jit(make, out_shardings=layout)(trained)
    del leaves, trained
    step = jit_train_step(learner, state, mesh, task.config)
    batch = to_batch(task.batch.examples, mesh)
    while True:
        state, metrics = step(state, frozen, batch, task.key)
        yield {name: float(value) for name, value in jax.device_get(metrics).items()}


def their_steps(task: Task) -> Iterator[dict[str, float]]:
    """The same of PyTorch."""
    trial = task.trial
    trainer = Trainer(
        task.learner.task.architecture,
        task.params,
        task.config,
        device=DEVICE,
        autocast=task.config.compute.dtype == "bfloat16",
        checkpointing=trial.remat == "blocks",
        compiled=trial.compiled,
    )
    draws = task.draws()
    batch = trainer.place(jax.device_get(to_inputs(task.batch.examples)))
    for drawn in draws:
        yield trainer.step(batch, drawn)


def run(trial: Trial) -> dict[str, Any]:
    """Returns seconds and metrics of the steps, and the most memory that was in use."""
    task = Task(trial)
    if trial.peer == "fd_jax":
        distributed.enable_compile_cache()
        steps = our_steps(task)
    else:
        steps = their_steps(task)
    seconds, cpu_seconds, metrics = [], [], []
    for _ in range(1 + trial.steps):
        begin = time.perf_counter(), time.process_time()
        metrics.append(next(steps))
        seconds.append(time.perf_counter() - begin[0])
        cpu_seconds.append(time.process_time() - begin[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if trial.peer != "fd_jax" and DEVICE == "cuda":
        peak = torch.cuda.max_memory_allocated()
    elif (device := jax.devices()[0]).platform == "gpu":
        peak = device.memory_stats()["peak_bytes_in_use"]
    return {
        "first": seconds[0],
        "seconds": seconds[1:],
        "cpu_seconds": cpu_seconds[1:],
        "metrics": metrics,
        "memory": peak,
    }
