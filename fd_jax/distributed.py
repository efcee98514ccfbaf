"""Processes that work together, and the compile cache: set up before a command computes."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import jax

from fd_jax.buckets import BucketPath, as_bucket
from fd_jax.config import Config, Range
from fd_jax.errors import InputError

# Seconds without a heartbeat after which a process is declared dead and the job stops.
_TIMEOUTS: dict[str, Any] = {"heartbeat_timeout_seconds": 60, "shutdown_timeout_seconds": 60}

_OPTIONS = "--coordinator-address, --num-processes and --process-id"
# Variables that jax.distributed reads in a job step of SLURM and under Open MPI.
_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_NUM_TASKS",
)
_OMPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_RANK"))
_OMPI_ADDRESS = "OMPI_MCA_orte_hnp_uri"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes(Config):
    """Processes of one command, on one machine or several."""

    distributed: bool = False
    """Initialize jax.distributed from the cluster environment even if it is not auto-detected (TPU
    pods, SLURM and Open MPI are)."""
    coordinator_address: str | None = None
    """HOST:PORT of process 0, if there is no cluster environment."""
    num_processes: Annotated[int, Range(1)] | None = None
    """Number of processes."""
    process_id: Annotated[int, Range(0)] | None = None
    """Number of this process, from 0."""

    def __post_init__(self):
        super().__post_init__()
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if given == (None, None, None):
            return
        if (
            self.coordinator_address is None
            or self.num_processes is None
            or self.process_id is None
        ):
            raise InputError(
                f"coordinator-address, num-processes and process-id are {given}, expected all "
                "three or none"
            )
        if not re.fullmatch(r".+:\d+", self.coordinator_address):
            raise InputError(
                f"coordinator-address is {self.coordinator_address!r}, expected HOST:PORT"
            )
        if self.process_id >= self.num_processes:
            raise InputError(
                f"process-id is {self.process_id}, expected 0..{self.num_processes - 1}"
            )


def join(processes: Processes | None = None) -> None:
    """Joins the other processes, if there are any, and opens the devices.

    Call it before any array is created. On TPU pods, under SLURM and under Open MPI the other
    processes are found without arguments.

    Raises:
        InputError: The cluster environment is incomplete, the processes do not find each other, or
            there is no device of the platform that JAX_PLATFORMS asks for.
    """
    processes = processes or Processes()
    options: dict[str, Any] | None = None
    if processes.coordinator_address is not None:
        options = {
            "coordinator_address": processes.coordinator_address,
            "num_processes": processes.num_processes,
            "process_id": processes.process_id,
        }
    elif (detected := _detect_cluster(os.environ)) is not None:
        options = detected
    elif processes.distributed:
        options = {}
    if options is not None:
        try:
            jax.distributed.initialize(**options, **_TIMEOUTS)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"processes cannot be joined: {error}; give {_OPTIONS}") from error
    _open_devices()


def _detect_cluster(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns options of jax.distributed if the environment is one of several processes.

    Raises:
        InputError: SLURM or Open MPI started this process, but some of their variables are missing.
    """
    if _count(environment, "SLURM_STEP_NUM_TASKS") > 1 or _count(environment, "SLURM_PROCID") > 0:
        _check_variables(environment, "SLURM", "srun", _SLURM)
        return {}
    if any(name in environment for name in _OMPI):
        _check_variables(environment, "Open MPI", "mpirun", _OMPI)
        if _count(environment, "OMPI_COMM_WORLD_SIZE") > 1:
            if _OMPI_ADDRESS in environment:
                return {}
            if importlib.util.find_spec("mpi4py") is not None:
                return {"cluster_detection_method": "mpi4py"}  # Open MPI 5 sets no address
            raise InputError(
                f"Open MPI started several processes, but {_OMPI_ADDRESS} is not set: install "
                f"mpi4py, or give {_OPTIONS}"
            )
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return None
    # A TPU host does not say without a query whether it is one of several; one alone may join too.
    is_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return {} if is_tpu and importlib.util.find_spec("libtpu") is not None else None


def _count(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name) or "0"
    if not value.isdecimal():
        raise InputError(f"{name} is {value!r}, expected a whole number")
    return int(value)


def _check_variables(
    environment: Mapping[str, str], cluster: str, launcher: str, names: tuple[str, ...]
) -> None:
    if missing := [name for name in names if not environment.get(name)]:
        raise InputError(
            f"{cluster} started this process, but {', '.join(missing)} is not set: start all "
            f"processes with {launcher}, or give {_OPTIONS}"
        )
    for name in names:
        if name != "SLURM_STEP_NODELIST":
            _count(environment, name)


def _open_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX asserts that a platform was found
        platforms = os.environ.get("JAX_PLATFORMS")
        detail = " ".join(str(error).split())
        if not platforms:
            raise InputError(f"JAX finds no usable devices: {detail}") from error
        raise InputError(
            f"JAX_PLATFORMS is {platforms!r}, but this machine or the installed JAX has no such "
            f"device: unset it, or set it to cpu{f' ({detail})' if detail else ''}"
        ) from error


def enable_compile_cache() -> None:
    """Keeps compiled functions between runs.

    They are stored in JAX_COMPILATION_CACHE_DIR, which may be a bucket, or in the user's cache
    folder. Without a writable one they are compiled anew by each run, which a warning says.

    Raises:
        InputError: It is in a bucket, and the package that reads that is not installed.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = _cache_folder()
        if folder is None:
            warnings.warn(
                "there is no writable home folder, so that every run compiles anew: set "
                "JAX_COMPILATION_CACHE_DIR to a folder that is",
                stacklevel=2,
            )
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    elif isinstance(as_bucket(Path(os.environ["JAX_COMPILATION_CACHE_DIR"])), BucketPath):
        # XLA's own files beside JAX's, on GPUs, would go to a local folder of that name.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    # Lower than JAX's second: the VAE of a small model compiles in less, which still adds up.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cache_folder() -> Path | None:
    """Creates the folder of compiled functions; returns None if that is not possible."""
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(caches, "fd_jax", "compiled")
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # RuntimeError: neither HOME nor an entry for the user
        return None
    return folder if os.access(folder, os.W_OK) else None


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the numbers of a run depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
