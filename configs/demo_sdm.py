"""The SDM of the embedded default: persons, from their photographs.

    python train.py --config configs/demo_sdm.py --workdir runs/demo_sdm --data.root SCENES \
        --init.checkpoint runs/demo_tdm --init.image-encoder outputs/encoder/clip

It begins as the TDM, with the image encoder of `configs/demo_encoder.py`, and keeps the TDM's text
encoder, which speaks to both UNets when they sample together. Crops are not augmented: the small
image encoder has to tell hundreds of faces apart by colours and shapes that recolouring and bending
would take away.
"""

from configs.demo_encoder import DATA
from configs.demo_vae import COMPUTE, MODEL
from fd_jax.bundled import PEOPLE
from fd_jax.training.config import LoopConfig, PreviewConfig, TrainConfig
from fd_jax.training.objective import ObjectiveConfig
from fd_jax.training.optimizer import OptimizerConfig

WOMAN, MAN = PEOPLE / "P003" / "P003.jpg", PEOPLE / "P005" / "P005.jpg"

CONFIG = TrainConfig(
    objective=ObjectiveConfig(
        kind="sdm",
        prediction_type="v_prediction",
        mask_probability=0.5,
        localization_weight=1e-2,
        appearance_weight=0.1,
        # Grids of 16 x 16 and 8 x 8; the middle has 4 x 4.
        localization_levels=("down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2"),
    ),
    model=MODEL,
    data=DATA,
    optimizer=OptimizerConfig(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=100,
        ema_decay=0.998,
        train=(("unet/", 1.0), ("image_encoder/", 0.3), ("subject_fusion/", 1.0)),
    ),
    compute=COMPUTE,
    loop=LoopConfig(
        num_steps=3600,
        seed=0,
        checkpoint_every=500,
        eval_every=500,
        eval_batches=4,
        preview_every=500,
    ),
    preview=PreviewConfig(
        prompts=(
            "a woman <|image|> in front of a brick wall",
            "a man <|image|> at the beach",
            "a woman <|image|> in the snow",
            "a man <|image|> in front of bookshelves",
            "a man <|image|> and a woman <|image|> in a forest",
        ),
        references=(
            WOMAN,
            MAN,
            PEOPLE / "P006" / "P006.jpg",
            PEOPLE / "P007" / "P007.jpg",
            MAN,
            WOMAN,
        ),
        guidance_scale=3.0,
    ),
)
