"""The TDM of the paper: Stable Diffusion 1.5, its UNet fine-tuned on captions alone.

    python train.py --config configs/tdm_ffhq.py --workdir runs/tdm_ffhq --data.root ffhq \
        --init.base stable-diffusion-v1-5

Hyper-parameters are those of the released code: batch 16, AdamW at 1e-5, 150,000 steps. Parameters
and moments take 10 GB, sharded over --mesh.fsdp devices; activations of 16 images of 512 px with
--compute.remat blocks a few GB more. The denoising loss starts at about 0.1 and falls little, as
Stable Diffusion is trained already: the pictures change, not the loss.
"""

from fd_jax.data.config import DataConfig
from fd_jax.training.config import LoopConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="tdm",
    data=DataConfig(batch_size=16, resolution=512, max_subjects=0, num_workers=8),
    optimizer=OptimizerConfig(learning_rate=1e-5, ema_decay=None, train=(("unet/", 1.0),)),
    loop=LoopConfig(num_steps=150_000, seed=42, checkpoint_every=5000, keep_every=50_000),
    preview=PreviewConfig(
        prompts=("a man reading in a garden", "a woman in the snow", "two people on a beach")
    ),
)
