"""Face-diffuser: person-centric text-to-image generation in JAX and Flax."""
