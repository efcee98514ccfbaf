"""The SDM of the paper: Stable Diffusion 1.5, conditioned on photographs of the persons.

    python train.py --config configs/sdm_ffhq.py --workdir runs/sdm_ffhq --data.root ffhq \
        --init.base stable-diffusion-v1-5 --init.image-encoder clip-vit-large-patch14

Hyper-parameters are those of the released code: batch 32, AdamW at 1e-5, 150,000 steps; the UNet,
the subject fusion and the last two layers of the image encoder train. Parameters and moments take
11 GB, sharded over --mesh.fsdp devices. The localization loss starts near 0 and falls below it.
"""

from fd_jax.assets import PEOPLE
from fd_jax.data.config import DataConfig
from fd_jax.training.config import LoopConfig, ObjectiveConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="sdm",
    objective=ObjectiveConfig(mask_probability=0.5, localization_weight=1e-3),
    data=DataConfig(batch_size=32, resolution=512, subject_resolution=224, num_workers=8),
    optimizer=OptimizerConfig(
        learning_rate=1e-5,
        ema_decay=None,
        train=(
            ("unet/", 1.0),
            ("subject_fusion/", 1.0),
            (r"image_encoder/layers/-[12]/", 1.0),
        ),
    ),
    loop=LoopConfig(num_steps=150_000, seed=42, checkpoint_every=5000, keep_every=50_000),
    preview=PreviewConfig(
        prompts=("a man <|image|> reading in a garden", "a woman <|image|> in the snow"),
        references=(PEOPLE / "P005" / "P005.jpg", PEOPLE / "P003" / "P003.jpg"),
    ),
)
