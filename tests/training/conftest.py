"""A tiny model and batches of random examples."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from fd_jax import params
from fd_jax.architecture import Architecture
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import Example
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from fd_jax.sharding import MeshConfig
from fd_jax.training.config import ComputeConfig, LoopConfig, ModelConfig, TrainConfig
from fd_jax.training.objective import PARTS, Batch, Objective, ObjectiveConfig
from fd_jax.training.optimizer import OptimizerConfig
from tests.helpers.networks import TINY
from tests.helpers.untrained import random_params

SIZE = 16  # of the images; latents are 8 x 8


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


@pytest.fixture(scope="session")
def leaves() -> dict[str, np.ndarray]:
    """All parameters by path."""
    networks = make_networks(TINY)
    return params.flat(
        {part: random_params(getattr(networks, part).abstract, 0, part) for part in PARTS["sdm"]}
    )


def make_objective(
    *, configs: Architecture = TINY, remat: str = "none", trains_vae: bool = False, **settings
) -> Objective:
    networks = make_networks(configs, attention="plain", remat=remat)
    settings = {"localization_levels": ("down_blocks.0", "mid_block"), **settings}
    schedule = ScheduleConfig()
    if (kind := settings.get("prediction_type")) is not None:
        schedule = dataclasses.replace(schedule, prediction_type=kind)
    return Objective(
        networks,
        ObjectiveConfig(**settings),
        schedule,
        downscale=configs.vae.downscale,
        trains_vae=trains_vae,
    )


def to_jax(tree):
    return jax.tree.map(jax.numpy.asarray, tree)


PHOTOS = pathlib.Path(__file__).parents[1] / "goldens" / "dataset" / "ffhq"


def make_config(**changes: object) -> TrainConfig:
    """Settings of a tiny run on three photographs, with fields replaced by their dotted names."""
    config = TrainConfig(
        objective=ObjectiveConfig(kind="tdm", localization_levels=("down_blocks.0", "mid_block")),
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
        group, field = name.split("__")
        part = dataclasses.replace(getattr(config, group), **{field: value})
        config = dataclasses.replace(config, **{group: part})
    return config
