"""What the benchmarks share: taking turns, comparing, and PyTorch models with our weights."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from fd_jax.checkpoints.torch_weights import Part, export

ROOT = Path(__file__).parents[1]


def in_turn(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each peer, called once before."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for call in peers.values():
        call()
    for _ in range(rounds):
        for name, call in peers.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, seconds: dict[str, float]) -> None:
    print(f"\n{title}")
    ours = seconds["fd_jax"]
    for name, value in seconds.items():
        print(f"  {name:24} {value:9.3f} s    {value / ours:5.2f} x the time of fd_jax")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def torch_model(cls: type, config: Any, params: dict, names: Part) -> torch.nn.Module:
    """A model of diffusers or transformers with the same weights, none of which trains."""
    model = cls.from_config(config) if isinstance(config, dict) else cls(config)
    model = model.eval().requires_grad_(False)
    state = {name: torch.from_numpy(value) for name, value in export(params, names)}
    if cls is AutoencoderKL:
        renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        for old, new in renamed.items():
            state = {name.replace(f".{old}.", f".{new}."): v for name, v in state.items()}
    model.load_state_dict(state)
    return model


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def in_process(
    script: str, task: Any, environment: Mapping[str, str], cpus: Collection[int] | None = None
) -> Any:
    """Has a script do a task, `--task TASK OUT`, and returns the JSON that it writes to OUT.

    Args:
        script: Path of the script.
        task: What it is to do, in JSON's types.
        environment: Variables besides those of this process.
        cpus: Which it may use; all of this process by default.

    Returns:
        None if it fails, as it does where memory runs out. Its last words are printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    cpus = cpus or os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [sys.executable, script, "--task", json.dumps(task), str(out)]
        done = subprocess.run(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        if done.returncode:
            print(f"  {(done.stderr.strip().splitlines() or ['no message'])[-1]}"[:300])
            return None
        return json.loads(out.read_text())
