"""What the small configs share: networks for 64 px, and settings for two CPU cores."""

from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig, UNetConfig, VAEConfig
from fd_jax.training.config import ComputeConfig, LoopConfig, ModelConfig

MODEL = ModelConfig(
    unet=UNetConfig(
        block_out_channels=(64, 96, 128),
        has_attention=(True, True, True),
        layers_per_block=1,
        cross_attention_dim=96,
        num_heads=4,
        norm_num_groups=16,
        sample_size=16,
    ),
    vae=VAEConfig(
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,  # the divergence term keeps latents near unit variance
        sample_size=64,
    ),
    text_encoder=CLIPTextConfig(hidden_size=96, intermediate_size=256, num_layers=2, num_heads=4),
    image_encoder=CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_layers=3,
        num_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=96,
    ),
)
COMPUTE = ComputeConfig(dtype="float32")
LOOP = LoopConfig(
    num_steps=1500,
    seed=0,
    checkpoint_every=200,
    eval_every=200,
    eval_batches=2,
    preview_every=500,
)

# Levels with grids of 16 x 16 and 8 x 8; the middle block has 4 x 4.
LOCALIZATION_LEVELS = ("down_blocks.0", "down_blocks.1", "up_blocks.1", "up_blocks.2")
