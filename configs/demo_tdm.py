"""The TDM of the bundled models: scenes and generic people, from captions alone.

    python train.py --config configs/demo_tdm.py --workdir runs/demo_tdm --data.root SCENES \
        --init.checkpoint runs/demo_sdm --data.latent-cache CACHE

It is initialized from the SDM, which has learned the scenes too, and needs few steps to make of
them a model of captions alone. It keeps the SDM's text encoder as it is. The learning rate is
constant, so that the run may end at any checkpoint.
"""

import dataclasses

from configs.demo_text import CONFIG as TEXT

CONFIG = dataclasses.replace(
    TEXT,
    optimizer=dataclasses.replace(TEXT.optimizer, train=(("unet/", 1.0),)),
    loop=dataclasses.replace(TEXT.loop, num_steps=1000),
)
