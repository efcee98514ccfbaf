"""That the programs compile for TPUs, and to what, on a machine without any."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.tpu_aot import HLO
from fd_jax import sharding

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", params=["sampler", "tdm"])
def report(request):
    """What benchmarks/tpu_aot.py prints of a tiny program, compiled for four chips."""
    pytest.importorskip(
        "libtpu", reason="libtpu is not installed: pip install -r requirements-tpu.txt"
    )
    # In a process of its own, as the library for TPUs stays loaded.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "benchmarks/tpu_aot.py", "--fsdp=2", "--program", request.param],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_programs_compile_for_a_tpu(report):
    assert report["chips"] == "4 TPU v5 lite, fsdp 2"
    assert 0 < report["peak_gb"] < report["hbm_gb"] == 16


def test_programs_hold_few_copies_of_a_unet(report):
    """Each takes compile time and memory: one a network."""
    assert report["unet_bodies"] == {"sampler": 2, "tdm": 1}[report["program"]]


def test_long_self_attention_is_a_kernel(report):
    """Three layers of a UNet at 32 x 32, in training on the way back twice more; the VAE's one."""
    assert report["pallas_calls"] == {"sampler": 2 * 3, "tdm": 3 * 3 + 1}[report["program"]]


def test_chips_exchange_no_more_than_they_must(report):
    """Parameters are gathered once a step, and never by the sampler."""
    assert report["collectives_in_loops"] == {}
    assert bool(report["collectives"]) == (report["program"] == "tdm")


def test_collectives_are_found_inside_and_outside_of_loops():
    """The check above would see them."""
    rows = sharding.batched(sharding.make_mesh())
    x = sharding.put(np.ones((8, 3), np.float32), rows)

    def centre(x, _=None):
        return x - x.sum(axis=0, keepdims=True), None

    def found(function):
        hlo = HLO(jax.jit(function, out_shardings=rows).lower(x).compile().as_text())
        return hlo.collectives(in_loops=True), hlo.collectives(in_loops=False)

    assert found(lambda x: jax.lax.scan(centre, x, length=3)[0]) == ({"all-reduce": 1}, {})
    assert found(lambda x: centre(x)[0]) == ({}, {"all-reduce": 1})
