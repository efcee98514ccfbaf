"""Runs in a bucket that are killed while they save. FD_KILLS is how often, 3 by default."""

import importlib.util
import os
import random
import time

import pytest

from tests.helpers.bucket_server import losses_in, serve
from tests.helpers.processes import start
from tests.helpers.training import CONFIG_FILE

KILLS = int(os.environ.get("FD_KILLS", "3"))


def whole(server):
    names = server.names("bucket", "run/checkpoints/")
    return {int(name.split("/")[2]) for name in names if name.endswith("commit_success.txt")}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is None, reason="needs fd_jax[gcs]")
def test_a_run_killed_within_saves_is_the_one_that_never_was(tmp_path, monkeypatch):
    config, log = tmp_path / "tiny.py", tmp_path / "log"
    config.write_text(CONFIG_FILE.format("loop__num_steps=10**6, loop__checkpoint_every=1"))
    rng = random.Random(0)
    with serve("bucket") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        half_made = 0
        command = ["--config", str(config), "--workdir", "gs://bucket/run"]
        for _ in range(KILLS):
            first = max(whole(server), default=0)
            process = start("train.py", command, log, devices=1)
            try:
                end = time.monotonic() + 400
                while max(whole(server), default=0) <= first:
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < end, log.read_text()
                    time.sleep(0.05)
                # At any request of the next saves.
                wanted = len(server.requests) + rng.randrange(200)
                while len(server.requests) < wanted:
                    assert process.poll() is None, log.read_text()
                    time.sleep(0.001)
            finally:
                process.kill()
                process.wait()
            names = server.names("bucket", "run/checkpoints/")
            half_made += len({int(name.split("/")[2]) for name in names} - whole(server))
            assert whole(server)
        print(f"{half_made} of {KILLS} kills left half a checkpoint")
        last = max(whole(server)) + 2
        options = ["--config", str(config), "--loop.num-steps", str(last)]
        for run in ("run", "never"):
            process = start(
                "train.py", [*options, "--workdir", f"gs://bucket/{run}"], log, devices=1
            )
            assert process.wait(timeout=600) == 0, log.read_text()
        assert sorted(losses_in(server, "run")) == list(range(1, last + 1))
        assert losses_in(server, "run") == losses_in(server, "never")
        assert not server.names("bucket", "run/damaged")
        assert not server.names("bucket", "run/lock.json")
