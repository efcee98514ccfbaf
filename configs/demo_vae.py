"""The autoencoder of the bundled models, trained from scratch: the first of their runs.

    python -m fd_jax.demo.scenes PEOPLE SCENES
    python train.py --config configs/demo_vae.py --workdir runs/demo_vae --data.root SCENES

64 px; latents of 32 x 32. TDM and SDM are initialized from it and keep it frozen. `latent_std` in
the metrics tells how far the latents are from the unit variance that scaling_factor 1 assumes.
"""

import dataclasses

from configs._demo import COMPUTE, DATA, LOOP, MODEL
from fd_jax.assets import PEOPLE
from fd_jax.training.config import ObjectiveConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="vae",
    objective=ObjectiveConfig(divergence_weight=2e-3),
    model=MODEL,
    data=dataclasses.replace(DATA, batch_size=8, caption_drop_prob=0.0, flip=True),
    optimizer=OptimizerConfig(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=100,
        weight_decay=0.0,
        ema_decay=0.999,
        train=(("vae/", 1.0),),
    ),
    compute=COMPUTE,
    loop=dataclasses.replace(LOOP, num_steps=3000),
    preview=PreviewConfig(references=(PEOPLE / "P005" / "P005.jpg", PEOPLE / "P003" / "P003.jpg")),
)
