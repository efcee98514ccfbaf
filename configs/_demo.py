"""Networks, data and computation that the runs of the bundled models share."""

from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from fd_jax.data.config import DataConfig
from fd_jax.training.config import ComputeConfig, LoopConfig, ModelConfig, PreviewConfig

MODEL = ModelConfig(
    # Attention at 8 x 8 alone: at 16 x 16 as well a step takes half as long again.
    unet=UNetConfig(
        block_out_channels=(48, 96, 128),
        has_attention=(False, False, True),
        layers_per_block=1,
        cross_attention_dim=144,
        num_heads=4,
        norm_num_groups=16,
        sample_size=32,
    ),
    # Two levels keep eyes and mouths, which latents of 16 x 16 lose.
    vae=VAEConfig(
        block_out_channels=(16, 48),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,  # the divergence term keeps latents near unit variance
        sample_size=64,
    ),
    text_encoder=CLIPTextConfig(hidden_size=144, intermediate_size=288, num_layers=2, num_heads=4),
    image_encoder=CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=480,
        num_layers=4,
        num_heads=4,
        image_size=96,
        patch_size=12,
        projection_dim=144,
    ),
)
COMPUTE = ComputeConfig(dtype="float32")
DATA = DataConfig(
    batch_size=16,
    resolution=64,
    subject_resolution=96,
    max_subjects=0,
    caption_drop_prob=0.1,
    augment=False,
    crops="portrait",
    backdrop="fd_jax.demo.painters:backdrop",
    flip=False,
    num_threads=2,
)
LOOP = LoopConfig(
    num_steps=60_000,
    seed=0,
    checkpoint_every=200,
    eval_every=500,
    eval_batches=4,
    preview_every=1000,
)
SCENES = PreviewConfig(
    prompts=(
        "a man in front of a brick wall",
        "a woman at the beach",
        "a man and a woman in the snow",
        "a woman in the city at night",
        "a man in front of bookshelves",
        "a man and a man in a forest",
    ),
    guidance_scale=3.0,
)
