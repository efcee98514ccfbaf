"""Mutated files and killed processes: nothing is executed, hangs, or is taken for whole."""

import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from fd_jax.data.latent_cache import has_block, read_block
from tests.helpers.processes import fuzz

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    found = fuzz("tests.helpers.fuzz_data", tmp_path, rounds=300)
    assert found["executed"] == []
    assert {name: count["wrong"] for name, count in found["counts"].items() if count["wrong"]} == {}
    assert max(count["slowest"] for count in found["counts"].values()) < 20
    assert all(count["refused"] for count in found["counts"].values())


def killed(code, seconds):
    """Runs code and kills its process after a while. Returns whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_writer_leaves_no_half_block(tmp_path):
    rng = random.Random(0)
    blocks = 0
    for i in range(30):
        code = (
            "from pathlib import Path\nfrom tests.helpers.latent_blocks import make_block\n"
            "print('ready', flush=True)\n"
            f"for number in range({1000 * i}, {1000 * i + 1000}):\n"
            f"    make_block(Path({str(tmp_path / 'cache')!r}), number)\n"
        )
        assert killed(code, rng.uniform(0, 0.5))
        for number in range(1000 * i, 1000 * i + 1000):
            if has_block(tmp_path / "cache", number):
                read_block(tmp_path / "cache", number)
                blocks += 1
    assert blocks
