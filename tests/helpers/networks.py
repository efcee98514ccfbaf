"""Architecture of the tiny networks that many tests share."""

from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)

# Latents of 8 x 8, images of 16 x 16.
TINY = Architecture(
    unet=UNetConfig(
        block_out_channels=(8, 16),
        has_attention=(True, False),
        layers_per_block=1,
        cross_attention_dim=12,
        num_heads=2,
        norm_num_groups=4,
        sample_size=8,
    ),
    vae=VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=16),
    text_encoder=CLIPTextConfig(hidden_size=12, intermediate_size=20, num_layers=1, num_heads=2),
    image_encoder=CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_layers=1,
        num_heads=2,
        image_size=28,
        projection_dim=12,
    ),
)
