"""Runs the project's scripts in processes of their own, alone or several together."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def start(script: str, arguments: list[str], log: pathlib.Path, *, devices: int):
    """Starts a script on so many virtual CPU devices; what it prints goes to `log`."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Compiled functions run a few times only.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(log.parent / "compiled"),
    }
    command = [sys.executable, str(ROOT / script), *arguments]
    with log.open("w") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


def together(arguments: list[str], count: int, prefix: str = "") -> list[list[str]]:
    """Returns the arguments of each of several processes, which find each other by them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"coordinator-address": address, "num-processes": count}
    options = [f"--{prefix}{name}={value}" for name, value in shared.items()]
    return [[*arguments, *options, f"--{prefix}process-id={i}"] for i in range(count)]


def fuzz(readers: str, folder: pathlib.Path, *, rounds: int) -> dict:
    """Runs `tests.helpers.fuzz` on a module of readers; returns what it counted."""
    command = [sys.executable, "-m", "tests.helpers.fuzz", readers, str(folder), str(rounds)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])
