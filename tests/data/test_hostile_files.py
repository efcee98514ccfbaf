"""Mutated files and killed processes: nothing is executed, hangs, or is taken for whole."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from fd_jax.data.ffhq import tfds_dataset
from fd_jax.data.ffhq.record import DataError
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.latent_cache import has_block, read_block
from tests.helpers.ffhq_items import item, write_folder

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_mutated_files_are_read_or_refused_by_name(tmp_path):
    command = [sys.executable, "-m", "tests.helpers.fuzz_data", str(tmp_path), "300"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=900
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
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
def test_a_killed_build_leaves_no_half_dataset(tmp_path):
    root = write_folder(tmp_path / "a", [item(2, seed=i) for i in range(60)])
    rng = random.Random(0)
    whole = 0
    for i in range(30):
        target = tmp_path / f"b{i}"
        code = (
            "from pathlib import Path\nfrom fd_jax.data.ffhq import tfds_dataset\n"
            f"print('ready', flush=True)\ntfds_dataset.build(Path({str(root)!r}), "
            f"Path({str(target)!r}))\n"
        )
        killed(code, rng.uniform(0, 1.5))
        if target.is_dir() and tfds_dataset.find(target) is not None:
            whole += 1
        else:
            with pytest.raises(DataError, match=r"does not exist|holds no dataset"):
                open_source([target], "train")
            tfds_dataset.build(root, target)  # the same command again
        source = open_source([target], "train")
        assert len(source) == 60
        assert source[59].id == "00000059"
    assert whole < 30


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
