"""Face-diffuser: person-centric text-to-image generation in JAX and Flax."""

from fd_jax.pipeline import FaceDiffuser

__all__ = ["FaceDiffuser"]
