"""A small SDM, on a folder of photographs and two CPU cores.

    python train.py --config configs/sdm_small.py --workdir runs/sdm_small --data.root photos \
        --init.checkpoint runs/tdm_small

It is initialized from the TDM, whose autoencoder it has to share. Without --init.checkpoint all of
it, the autoencoder too, starts at random. On 657 portraits and two busy cores, 1,500 steps took 30
minutes and 4 GB of memory; the held-out denoising loss fell from 0.198 (after 200 steps) to 0.190
and the localization loss from 0.000 to -0.72: attention to a subject's word lies on the subject.
"""

from configs._small import COMPUTE, LOCALIZATION_LEVELS, LOOP, MODEL
from fd_jax.assets import PEOPLE
from fd_jax.data.config import DataConfig
from fd_jax.training.config import ObjectiveConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="sdm",
    objective=ObjectiveConfig(
        localization_weight=1e-2,
        localization_levels=LOCALIZATION_LEVELS,
    ),
    model=MODEL,
    data=DataConfig(batch_size=16, resolution=64, subject_resolution=64, max_subjects=2),
    optimizer=OptimizerConfig(
        learning_rate=5e-4,
        warmup_steps=100,
        ema_decay=0.999,
        train=(
            ("unet/", 1.0),
            ("text_encoder/", 1.0),
            ("image_encoder/", 1.0),
            ("subject_fusion/", 1.0),
            ("vae/", 1.0),
        ),
    ),
    compute=COMPUTE,
    loop=LOOP,
    preview=PreviewConfig(
        prompts=("a photo of a man <|image|>", "a photo of a woman <|image|>"),
        references=(PEOPLE / "P005" / "P005.jpg", PEOPLE / "P003" / "P003.jpg"),
        guidance_scale=2.0,
    ),
)
