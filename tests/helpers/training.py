"""Tiny tasks, batches of random examples, and configs of tiny runs."""

import dataclasses
import pathlib

import jax
import numpy as np

from fd_jax import params
from fd_jax.architecture import Architecture
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.networks import make_networks
from fd_jax.ops.layers import Remat
from fd_jax.schedule import ScheduleConfig
from fd_jax.sharding import MeshConfig
from fd_jax.training.config import (
    ComputeConfig,
    LoopConfig,
    ModelConfig,
    ObjectiveConfig,
    TrainConfig,
)
from fd_jax.training.metrics import read_metrics
from fd_jax.training.optimizer import OptimizerConfig
from fd_jax.training.tasks import TASKS
from fd_jax.training.tasks.base import Batch, Task
from tests.helpers.networks import TINY
from tests.helpers.untrained import random_params

# Of a file for `train.py --config`; its braces take the arguments of `make_config`.
CONFIG_FILE = "from tests.helpers.training import make_config\n\nCONFIG = make_config({})\n"
SIZE = 16  # of the images; latents are 8 x 8


def read_losses(workdir: pathlib.Path) -> dict[int, float]:
    """The losses that a run has written, by step."""
    return {line["step"]: line["loss"] for line in read_metrics(workdir / "metrics.jsonl")}


def random_batch(count: int, *, seed: int = 0, subjects: int = 2) -> Batch:
    """Examples with none, one or two subjects."""
    rng = np.random.default_rng(seed)

    def levels(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape).astype(np.uint8)

    ids = rng.integers(0, 49406, (count, 77)).astype(np.int32)
    present = np.arange(count)[:, None] % 3 > np.arange(subjects)[None]
    examples = Example(
        image=levels(count, SIZE, SIZE, 3),
        segment_map=rng.integers(0, 4, (count, SIZE, SIZE)).astype(np.uint8),
        subject_pixels=levels(count, subjects, 28, 28, 3),
        subject_ids=np.broadcast_to(np.arange(1, subjects + 1, dtype=np.uint8), present.shape),
        input_ids=ids,
        subject_token_index=np.where(present, [3, 7][:subjects], 0).astype(np.int32),
        has_subject=present,
        index=np.arange(count, dtype=np.int32),
    )
    return Batch(examples, np.arange(count, dtype=np.int32))


def random_leaves(architecture: Architecture = TINY) -> dict[str, np.ndarray]:
    """Returns random parameters of all networks by path."""
    shapes = make_networks(architecture).shapes()
    return params.flat({part: random_params(shapes[part], 0, part) for part in shapes})


def make_task(
    name: str = "sdm",
    *,
    architecture: Architecture = TINY,
    dtype: str = "float32",
    remat: Remat = "none",
    trains_vae: bool = False,
    **objective: object,
) -> Task:
    """Returns a task on tiny networks, with options of its objective by name."""
    objective = {"localization_levels": ("down_blocks.0", "mid_block"), **objective}
    schedule = ScheduleConfig()
    if (prediction_type := objective.get("prediction_type")) is not None:
        schedule = dataclasses.replace(schedule, prediction_type=prediction_type)
    return TASKS[name](
        make_networks(architecture, dtype=dtype, attention="plain", remat=remat),
        architecture,
        schedule,
        ObjectiveConfig(**objective),
        trains_vae=trains_vae,
    )


def to_jax(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


PHOTOS = pathlib.Path(__file__).parents[1] / "goldens" / "dataset" / "ffhq"


def make_config(**changes: object) -> TrainConfig:
    """Returns the config of a tiny run on three photographs.

    Args:
        **changes: Fields to replace: `task`, or others as group__field.
    """
    config = TrainConfig(
        task="tdm",
        objective=ObjectiveConfig(localization_levels=("down_blocks.0", "mid_block")),
        model=ModelConfig(
            unet=TINY.unet,
            vae=TINY.vae,
            text_encoder=TINY.text_encoder,
            image_encoder=TINY.image_encoder,
        ),
        data=DataConfig(
            root=(PHOTOS,),
            batch_size=4,
            resolution=SIZE,
            subject_resolution=28,
            max_subjects=0,
            num_threads=2,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, train=(("unet/", 1.0),)),
        compute=ComputeConfig(dtype="float32", attention="plain"),
        mesh=MeshConfig(fsdp=1),
        loop=LoopConfig(
            num_steps=4, checkpoint_every=2, log_every=1, eval_every=0, preview_every=0, seed=1
        ),
    )
    for name, value in changes.items():
        group, _, field = name.partition("__")
        if not field:
            config = dataclasses.replace(config, **{group: value})
            continue
        part = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group: part})
    return config
