"""Runs that are killed at any moment: nothing half-made is taken for whole.

FD_KILLS is how often a run is killed.
"""

import os
import random
import signal
import time

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.run.manager import read_params
from fd_jax.checkpoints.run.step_folders import steps_in
from fd_jax.params import flat
from tests.helpers.processes import start
from tests.helpers.training import CONFIG_FILE, read_losses

KILLS = int(os.environ.get("FD_KILLS", "3"))


def wait_for_a_step(workdir, process, after):
    """Waits until the process has taken a step beyond `after`."""
    path = workdir / "metrics.jsonl"
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, "the process ended by itself"
        if path.exists() and max(read_losses(workdir), default=0) > after:
            return
        time.sleep(0.02)
    pytest.fail("no step in five minutes")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_one_that_never_was(tmp_path):
    config, workdir, log = tmp_path / "tiny.py", tmp_path / "run", tmp_path / "log"
    config.write_text(CONFIG_FILE.format("loop__num_steps=10**6, loop__checkpoint_every=1"))
    command = ["--config", str(config), "--workdir", str(workdir)]
    rng = random.Random(0)
    mesh = sharding.make_mesh(jax.devices()[:1])
    placement = Placement("float32", lambda path, shape: sharding.replicated(mesh))

    for kill in range(KILLS):
        process = start("train.py", command, log, devices=1)
        try:
            if kill % 2:
                time.sleep(rng.uniform(0, 10))  # while it starts
            else:
                known = read_losses(workdir) if (workdir / "metrics.jsonl").exists() else {}
                wait_for_a_step(workdir, process, max(known, default=0))
                time.sleep(rng.uniform(0, 1))  # while it trains and saves
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()
            process.wait()
        if steps_in(workdir / "checkpoints"):
            params = flat(read_params(workdir, placement=placement))
            assert all(np.isfinite(leaf).all() for leaf in params.values())

    process = start("train.py", command, log, devices=1)
    try:
        wait_for_a_step(workdir, process, max(read_losses(workdir)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 128 + signal.SIGTERM, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert not (workdir / "lock.json").exists()
    found = read_losses(workdir)
    last = max(found)
    assert sorted(found) == list(range(1, last + 1))

    whole = tmp_path / "whole"
    options = ["--config", str(config), "--workdir", str(whole), "--loop.num-steps", str(last)]
    options += ["--loop.checkpoint-every", str(last)]
    process = start("train.py", options, log, devices=1)
    assert process.wait(timeout=600) == 0, log.read_text()
    assert read_losses(whole) == found
