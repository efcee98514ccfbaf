"""Commands in processes that can be killed, forked from one that has imported everything."""

import importlib
import multiprocessing
import os
import pathlib
import sys
import time
from multiprocessing.synchronize import Event

COMMANDS = (
    *("fd_jax.inference.cli", "fd_jax.checkpoints.export", "fd_jax.checkpoints.bundle"),
    *("fd_jax.data.cli", "fd_jax.data.ffhq.tfds_dataset", "tests.helpers.encode"),
)
# No backend of JAX is open when a process is forked, so that none of its threads is lost.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(COMMANDS))


def work(module: str, arguments: list[str], is_ready: Event, errors: str) -> None:
    """Runs a command, in a process of its own."""
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    )
    with open(errors, "w") as file:
        sys.stdout = sys.stderr = file
        sys.argv = [module, *arguments]
        main = importlib.import_module(module).main
        is_ready.set()
        main()


def start(log: os.PathLike, module: str, *arguments: object):
    """Starts a command; returns once it has imported its modules."""
    is_ready = SERVER.Event()
    process = SERVER.Process(
        target=work, args=(module, list(map(str, arguments)), is_ready, str(log))
    )
    process.start()
    assert is_ready.wait(600)
    return process


def complete(log: os.PathLike, *command: object) -> float:
    """Runs a command to its end; returns the seconds that its work takes."""
    process = start(log, *command)
    begin = time.monotonic()
    process.join(600)
    assert process.exitcode == 0, pathlib.Path(log).read_text()
    return time.monotonic() - begin


def killed(log: os.PathLike, seconds: float, *command: object) -> bool:
    """Kills a command after a while; returns whether it was still at work."""
    process = start(log, *command)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode < 0
