"""Networks over latents and images: UNet and VAE."""
