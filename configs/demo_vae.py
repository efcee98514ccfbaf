"""The autoencoder of the bundled models, trained from scratch: the first of four runs.

    python -m fd_jax.demo.scenes PEOPLE SCENES
    python train.py --config configs/demo_vae.py --workdir runs/demo_vae --data.root SCENES

64 px; latents of 16 x 16. TDM and SDM are initialized from it and keep it frozen. `latent_std` in
the metrics tells how far the latents are from the unit variance that scaling_factor 1 assumes.
"""

from configs._small import COMPUTE, MODEL
from fd_jax.assets import PEOPLE
from fd_jax.data.config import DataConfig
from fd_jax.training.config import LoopConfig, ObjectiveConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="vae",
    objective=ObjectiveConfig(divergence_weight=3e-3),
    model=MODEL,
    data=DataConfig(
        batch_size=8,
        resolution=64,
        max_subjects=0,
        caption_drop_prob=0.0,
        num_threads=2,
        flip=True,
    ),
    optimizer=OptimizerConfig(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=100,
        weight_decay=0.0,
        ema_decay=0.999,
        train=(("vae/", 1.0),),
    ),
    compute=COMPUTE,
    loop=LoopConfig(
        num_steps=3000,
        seed=0,
        checkpoint_every=500,
        eval_every=500,
        eval_batches=4,
        preview_every=500,
    ),
    preview=PreviewConfig(references=(PEOPLE / "P005" / "P005.jpg", PEOPLE / "P003" / "P003.jpg")),
)
