"""The TDM of the bundled models: scenes and generic people, from captions alone.

    python train.py --config configs/demo_tdm.py --workdir runs/demo_tdm --data.root SCENES \
        --init.checkpoint runs/demo_vae

`python -m fd_jax.demo.scenes` writes SCENES. The UNet predicts v (arXiv:2202.00512), whose loss
weighs high noise more: there a small model learns colours and layout.
"""

from configs._small import COMPUTE, MODEL
from fd_jax.data.config import DataConfig
from fd_jax.training.config import LoopConfig, ObjectiveConfig, PreviewConfig, TrainConfig
from fd_jax.training.optimizer import OptimizerConfig

CONFIG = TrainConfig(
    task="tdm",
    objective=ObjectiveConfig(prediction_type="v_prediction"),
    model=MODEL,
    data=DataConfig(
        batch_size=16, resolution=64, max_subjects=0, caption_drop_prob=0.1, num_threads=2
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        ema_decay=0.998,
        train=(("unet/", 1.0), ("text_encoder/", 1.0)),
    ),
    compute=COMPUTE,
    loop=LoopConfig(
        num_steps=3500,
        seed=0,
        checkpoint_every=500,
        eval_every=500,
        eval_batches=4,
        preview_every=500,
    ),
    preview=PreviewConfig(
        prompts=(
            "a man in front of a brick wall",
            "a woman at the beach",
            "a man and a woman in the snow",
            "a woman in the city at night",
            "a man in front of bookshelves",
            "a man and a man in a forest",
        ),
        guidance_scale=3.0,
    ),
)
