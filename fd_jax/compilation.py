"""Options of the compiler, where it is slow by default."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

# XLA hands products, convolutions and what is beside them to YNNPACK on a CPU. Without that the
# gradient of a convolution's kernel takes a fifth of the time, and most else a little less. It is
# left on for bfloat16, where it is what uses AMX.
_WITHOUT_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}


def compiler_options(mesh: Mesh, dtype: DTypeLike) -> dict[str, str]:
    """Returns options, for `jax.jit`, of a program that computes in `dtype` on a mesh."""
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    if is_cpu and jnp.dtype(dtype) == jnp.float32 and _is_known():
        return dict(_WITHOUT_YNNPACK)
    return {}


@functools.cache
def _is_known() -> bool:
    """Asks the compiler whether it knows the option; it is experimental, and may go."""
    where = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    zero = jax.jit(lambda: jnp.zeros(()), out_shardings=where, compiler_options=_WITHOUT_YNNPACK)
    try:
        zero.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True
