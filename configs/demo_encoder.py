"""The image encoder of the bundled models, trained from scratch before the SDM.

    python train.py --config configs/demo_encoder.py --workdir runs/demo_encoder --data.root SCENES
    python -m fd_jax.checkpoints.export runs/demo_encoder outputs/encoder

It learns to predict a subject's colours and shapes from a photograph, on any background.
Initialized from it (`--init.image-encoder outputs/encoder/clip`), the SDM gets useful embeddings
from its first step. The paper's SDM is initialized from CLIP's encoder.
"""

import dataclasses

from configs._small import COMPUTE, MODEL
from fd_jax.data.config import DataConfig
from fd_jax.training.config import LoopConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

# Shared by this run and the SDM.
DATA = DataConfig(
    batch_size=16,
    resolution=64,
    subject_resolution=64,
    max_subjects=2,
    caption_drop_prob=0.1,
    augment=False,
    crops="portrait",
    backdrop="fd_jax.demo.painters:backdrop",
    flip=False,
    num_threads=2,
)

CONFIG = TrainConfig(
    task="encoder",
    model=MODEL,
    data=dataclasses.replace(DATA, batch_size=64, caption_drop_prob=0.0, subject_keep_prob=1.0),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        ema_decay=0.99,
        train=(("image_encoder/", 1.0),),
    ),
    compute=COMPUTE,
    loop=LoopConfig(num_steps=1500, seed=0, checkpoint_every=250, eval_every=250, eval_batches=4),
)
