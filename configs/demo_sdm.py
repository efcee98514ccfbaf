"""The SDM of the bundled models: persons, from their photographs.

    python train.py --config configs/demo_sdm.py --workdir runs/demo_sdm --data.root SCENES \
        --init.checkpoint runs/demo_tdm --init.image-encoder outputs/encoder/clip

It is initialized from the TDM and the image encoder of `configs/demo_encoder.py`, and keeps the
TDM's text encoder, whose embeddings both UNets read when they sample together. Crops are not
augmented: the small image encoder tells faces apart by colours and shapes, which augmentation
changes.
"""

import dataclasses

from configs._small import LOCALIZATION_LEVELS
from configs.demo_encoder import DATA
from configs.demo_tdm import CONFIG as TDM
from fd_jax.assets import PEOPLE
from fd_jax.training.config import ObjectiveConfig

WOMAN, MAN = PEOPLE / "P003" / "P003.jpg", PEOPLE / "P005" / "P005.jpg"

CONFIG = dataclasses.replace(
    TDM,
    task="sdm",
    objective=ObjectiveConfig(
        prediction_type="v_prediction",
        mask_probability=0.5,
        localization_weight=1e-2,
        appearance_weight=0.1,
        localization_levels=LOCALIZATION_LEVELS,
    ),
    data=DATA,
    optimizer=dataclasses.replace(
        TDM.optimizer,
        train=(("unet/", 1.0), ("image_encoder/", 0.3), ("subject_fusion/", 1.0)),
    ),
    loop=dataclasses.replace(TDM.loop, num_steps=3600),
    preview=dataclasses.replace(
        TDM.preview,
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
    ),
)
