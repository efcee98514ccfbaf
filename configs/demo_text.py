"""The text encoder of the bundled models, with a UNet of a few steps, from which the SDM begins.

    python train.py --config configs/demo_text.py --workdir runs/demo_text --data.root SCENES \
        --init.checkpoint runs/demo_vae

The UNet predicts v (arXiv:2202.00512), whose loss weighs high noise more: there a small model
learns colours and layout. The text encoder trains on with the SDM.
"""

import dataclasses

from configs._demo import COMPUTE, DATA, LOOP, MODEL, SCENES
from fd_jax.training.config import ObjectiveConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="tdm",
    objective=ObjectiveConfig(prediction_type="v_prediction"),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        warmup_steps=50,
        ema_decay=0.999,
        train=(("unet/", 1.0), ("text_encoder/", 1.0)),
    ),
    compute=COMPUTE,
    loop=dataclasses.replace(LOOP, num_steps=500),
    preview=SCENES,
)
