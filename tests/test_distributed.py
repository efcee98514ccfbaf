"""Cluster environments, missing devices and missing home folders: one line that says what to do."""

import os
import subprocess
import sys

import jax
import pytest

from fd_jax import distributed
from fd_jax.distributed import Processes
from fd_jax.errors import InputError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_NUM_TASKS": "2",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
}
ALONE = {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("cluster", [SLURM, OPEN_MPI], ids=["slurm", "open_mpi"])
def test_clusters_are_detected(cluster):
    assert distributed._detect_cluster(ALONE | cluster) == {}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
    ids=["none", "batch_script", "slurm", "open_mpi"],
)
def test_one_process_is_alone(environment):
    assert distributed._detect_cluster(ALONE | environment) is None


@pytest.mark.parametrize(
    ("cluster", "missing"), [(SLURM, n) for n in SLURM] + [(OPEN_MPI, n) for n in OPEN_MPI]
)
def test_half_a_cluster_is_refused(cluster, missing, monkeypatch):
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    environment = ALONE | {name: value for name, value in cluster.items() if name != missing}

    with pytest.raises(InputError, match=f"{missing} is not set.*or give --coordinator-address"):
        distributed._detect_cluster(environment)


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])
def test_counts_that_are_none(name):
    with pytest.raises(InputError, match=f"{name} is 'two', expected a whole number"):
        distributed._detect_cluster(ALONE | SLURM | {name: "two"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"process_id": 0}, "all three or none"),
        ({"coordinator_address": "host:1", "num_processes": 2}, "all three or none"),
        ({"coordinator_address": "host", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator_address": "h:1", "num_processes": 2, "process_id": 2}, r"expected 0\.\.1"),
        ({"coordinator_address": "h:1", "num_processes": 0, "process_id": 0}, "1 or more"),
    ],
)
def test_processes_that_do_not_fit(fields, message):
    with pytest.raises(InputError, match=message):
        Processes(**fields)


def run(code, **changes):
    names = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    code = f"from fd_jax import cli, distributed\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], env=environment | changes, capture_output=True, text=True
    )


@pytest.mark.parametrize("platform", ["cuda", "tpu", "abacus"])
def test_devices_that_the_machine_lacks(platform):
    done = run("cli.run(distributed.join, args=())", JAX_PLATFORMS=platform)

    if done.returncode:  # there may be such a device
        assert done.stderr.splitlines()[-1].startswith(f"error: JAX_PLATFORMS is '{platform}', but")
        assert "Traceback" not in done.stderr
    else:
        assert platform != "abacus"


NO_ENTRY = """
import pwd
def absent(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = absent
"""


@pytest.mark.parametrize("home", [None, "/proc"], ids=["unset", "not_writable"])
def test_without_a_home_folder_nothing_is_kept(home):
    changes = {} if home is None else {"HOME": home}
    done = run(
        f"{NO_ENTRY}cli.run_main(distributed.enable_compile_cache)", JAX_PLATFORMS="cpu", **changes
    )

    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "set JAX_COMPILATION_CACHE_DIR" in done.stderr


def test_the_cache_is_below_the_home_folder(tmp_path):
    code = "import jax; distributed.enable_compile_cache()"
    done = run(
        f"{code}; print(jax.config.jax_compilation_cache_dir)",
        JAX_PLATFORMS="cpu",
        HOME=str(tmp_path),
    )

    assert done.stdout.strip() == str(tmp_path / ".cache" / "fd_jax" / "compiled")


def test_one_process_joins_nobody():
    distributed.join()

    assert not jax.distributed.is_initialized()
