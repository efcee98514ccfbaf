"""Options of the compiler, where it is slow by default."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

_CPU_OPTIONS = {
    # XLA hands products, convolutions and what is beside them to YNNPACK on a CPU. Without that the
    # gradient of a convolution's kernel takes a fifth of the time, and most else a little less. It
    # is left on for bfloat16, where it is what uses AMX.
    "xla_cpu_experimental_ynn_fusion_type": "",
    # The default is 256 bits. Where a CPU has 512, sampling takes 0.95 of the time with them.
    "xla_cpu_prefer_vector_width": "512",
}
# A training step, whose gradients have many sums, takes 0.95 of the time if YNNPACK computes them;
# sampling takes up to 1.08.
_CPU_GRADIENT_OPTIONS = _CPU_OPTIONS | {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"
}


def compiler_options(
    mesh: Mesh, dtype: DTypeLike, *, has_gradients: bool = False
) -> dict[str, str]:
    """Returns options of a program for `jax.jit`.

    Args:
        mesh: Devices that it runs on.
        dtype: Dtype that it computes in.
        has_gradients: Whether it computes gradients.
    """
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    if is_cpu and jnp.dtype(dtype) == jnp.float32:
        options = _CPU_GRADIENT_OPTIONS if has_gradients else _CPU_OPTIONS
        return {name: value for name, value in options.items() if _is_known(name, value)}
    return {}


@functools.cache
def _is_known(name: str, value: str) -> bool:
    """Asks the compiler whether it knows an option; an experimental one may go."""
    where = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    zero = jax.jit(lambda: jnp.zeros(()), out_shardings=where, compiler_options={name: value})
    try:
        zero.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
