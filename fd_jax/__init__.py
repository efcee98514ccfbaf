"""Face-diffuser: person-centric text-to-image generation in JAX and Flax."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fd_jax.errors import InputError
    from fd_jax.images.png import read_settings
    from fd_jax.inference.pipeline import FaceDiffuser
    from fd_jax.inference.samples import Samples
    from fd_jax.sampling.stages import SamplerConfig

__version__ = "0.2.0"

# Imported when first used: JAX and Flax take seconds, which a command's --help need not wait for.
_EXPORTS = {
    "FaceDiffuser": "fd_jax.inference.pipeline",
    "InputError": "fd_jax.errors",
    "SamplerConfig": "fd_jax.sampling.stages",
    "Samples": "fd_jax.inference.samples",
    "read_settings": "fd_jax.images.png",
}
__all__ = [
    "FaceDiffuser",
    "InputError",
    "SamplerConfig",
    "Samples",
    "__version__",
    "read_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
