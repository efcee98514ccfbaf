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


def compiler_options(mesh: Mesh, dtype: DTypeLike) -> dict[str, str]:
    """Returns options, for `jax.jit`, of a program that computes in `dtype` on a mesh."""
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    if is_cpu and jnp.dtype(dtype) == jnp.float32:
        return {name: value for name, value in _CPU_OPTIONS.items() if _is_known(name, value)}
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
