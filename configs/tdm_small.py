"""A small TDM, trained from scratch on a folder of photographs and two CPU cores.

    python train.py --config configs/tdm_small.py --workdir runs/tdm_small --data.root photos

64 px; UNet, text encoder and autoencoder train together. On 657 portraits and two busy cores, 1,500
steps took 40 minutes and 4 GB of memory; the denoising loss on held-out images fell from 0.29
(after 250 steps) to 0.20, and the pictures are recognizably people.
"""

from configs._small import COMPUTE, LOOP, MODEL
from fd_jax.data.config import DataConfig
from fd_jax.training.config import PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="tdm",
    model=MODEL,
    data=DataConfig(batch_size=16, resolution=64, max_subjects=0),
    optimizer=OptimizerConfig(
        learning_rate=5e-4,
        warmup_steps=100,
        ema_decay=0.999,
        train=(("unet/", 1.0), ("text_encoder/", 1.0), ("vae/", 1.0)),
    ),
    compute=COMPUTE,
    loop=LOOP,
    preview=PreviewConfig(
        prompts=("a photo of a man", "a photo of a woman smiling"), guidance_scale=2.0
    ),
)
