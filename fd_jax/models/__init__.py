"""Everything that consumes the context or pixels: UNet and VAE."""
