"""Three-stage sampling with saliency-adaptive noise fusion."""
