"""What a script sets up before it computes: processes and the compile cache."""

import dataclasses
import os
from pathlib import Path

import jax

from fd_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Several processes that work together, on one machine or many."""

    distributed: bool = False
    """Ask the cluster (TPU pod, SLURM, Open MPI) which processes there are."""
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
    """Joins the other processes. Must come before any array is made."""
    if processes.coordinator_address is not None:
        jax.distributed.initialize(
            processes.coordinator_address, processes.num_processes, processes.process_id
        )
    elif processes.distributed:
        jax.distributed.initialize()


def enable_compile_cache() -> None:
    """Keeps compiled programs between runs.

    They go to JAX_COMPILATION_CACHE_DIR, which may be a bucket, or to the user's cache folder.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(caches, "fd_jax", "compiled")))
    # The VAE of a small model compiles in less than JAX's limit of a second, but not for nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
