"""The SDM of the bundled models: persons, from their photographs.

    python train.py --config configs/demo_sdm.py --workdir runs/demo_sdm --data.root SCENES \
        --init.checkpoint runs/demo_text --init.image-encoder ENCODER

It is initialized from the run of the text encoder and from what
`python -m fd_jax.demo.train_encoder` writes. The text encoder trains on, and the TDM shares it
afterwards: from `demo_text` its embeddings of the first and of the second "man" of a caption are
nearly equal, and a UNet that cannot tell them apart puts two people in places of their own choice.
Crops are not augmented: that would change what tells faces apart. The learning rate is constant,
so that the run may end at any checkpoint.
"""

import dataclasses

from configs.demo_text import CONFIG as TEXT
from fd_jax.assets import PEOPLE
from fd_jax.training.config import ObjectiveConfig

WOMAN, MAN = PEOPLE / "P003" / "P003.jpg", PEOPLE / "P005" / "P005.jpg"

CONFIG = dataclasses.replace(
    TEXT,
    task="sdm",
    objective=ObjectiveConfig(
        prediction_type="v_prediction",
        mask_probability=0.5,
        localization_weight=5e-2,
        localization_levels=("down_blocks.2", "up_blocks.0"),  # grids of 8 x 8
    ),
    data=dataclasses.replace(TEXT.data, max_subjects=2),
    optimizer=dataclasses.replace(
        TEXT.optimizer,
        train=(("unet/", 1.0), ("subject_fusion/", 1.0), ("text_encoder/", 1.0)),
    ),
    loop=dataclasses.replace(TEXT.loop, num_steps=7000),
    preview=dataclasses.replace(
        TEXT.preview,
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
