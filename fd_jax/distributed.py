"""What a script sets up before it computes: processes and the compile cache."""

import dataclasses
import importlib.metadata
import importlib.util
import os
from pathlib import Path

import jax

from fd_jax.errors import InputError

# After which a process that says nothing counts as dead, and the others stop too.
_TIMEOUTS = {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Several processes that work together, on one machine or many."""

    distributed: bool = False
    """Ask the cluster which processes there are, where it is not found by itself (TPU pods, SLURM
    and Open MPI are)."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, where no cluster tells."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""

    def __post_init__(self):
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if any(value is None for value in given) and any(value is not None for value in given):
            raise InputError(
                f"coordinator-address, num-processes and process-id are {given}, expected all "
                "three or none"
            )
        if self.process_id is not None and not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process-id is {self.process_id}, expected 0..{self.num_processes - 1}"
            )


def join(processes: Processes) -> None:
    """Joins the other processes, if there are any. Must come before any array is made.

    Processes of a cluster are found without being told of: on TPU pods, by SLURM and Open MPI.
    """
    if processes.coordinator_address is not None:
        jax.distributed.initialize(
            processes.coordinator_address,
            processes.num_processes,
            processes.process_id,
            **_TIMEOUTS,
        )
    elif processes.distributed or _in_cluster():
        jax.distributed.initialize(**_TIMEOUTS)


def _in_cluster() -> bool:
    """Whether the environment shows that this process is one of several."""
    counts = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(name) or 1) > 1 for name in counts):
        return True
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    # A TPU host does not tell without a query how many of it there are; one alone may join too.
    is_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return is_tpu and importlib.util.find_spec("libtpu") is not None


def enable_compile_cache() -> None:
    """Keeps compiled programs between runs.

    They go to JAX_COMPILATION_CACHE_DIR, which may be a bucket, or to the user's cache folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches, "fd_jax", "compiled")))
    # The VAE of a small model compiles in less than JAX's limit of a second, but not for nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the numbers of a run depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
