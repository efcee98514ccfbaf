"""That the programs compile for TPUs, and to what, on a machine without any."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.hlo import HLO
from benchmarks.tpu_aot import PROGRAMS
from fd_jax import sharding

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module", params=PROGRAMS)
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


MESHES = """
from jax.experimental import topologies

from fd_jax import sharding
from fd_jax.errors import InputError

devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:4x4", num_slices=2
).devices
for fsdp in (1, 2, 4, 8, 16):
    mesh = sharding.make_mesh(devices, fsdp=fsdp)
    assert dict(mesh.shape) == {"data": 32 // fsdp, "fsdp": fsdp}
    assert all(len({device.slice_index for device in group}) == 1 for group in mesh.devices)
    assert len({device.id for device in mesh.devices.flat}) == 32
for some, fsdp in ((devices, 32), (devices[:24], 1)):
    try:
        sharding.make_mesh(some, fsdp=fsdp)
    except InputError as error:
        print(error)
"""


def test_groups_of_devices_stay_within_a_slice():
    """Of two slices of 16 chips each."""
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    done = subprocess.run(
        [sys.executable, "-c", MESHES], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "fsdp is 32, which would cross the 2 slices of 16 devices; expected one of "
        "[1, 2, 4, 8, 16]",
        "24 devices are of 2 slices, expected as many of each",
    ]


def test_programs_compile_for_a_tpu(report):
    assert report["chips"] == "4 TPU v5 lite, fsdp 2"
    assert 0 < report["peak_gb"] < report["hbm_gb"] == 16
    assert 0 < report["hbm_gb_per_image"] < report["accessed_gb_per_image"]


def test_programs_hold_few_copies_of_a_unet(report):
    """Each takes compile time and memory: one a network."""
    expected = {"unet": 1, "encode": 0, "sampler": 2, "decode": 0, "tdm": 1, "sdm": 1}
    assert report["unet_bodies"] == expected[report["program"]]


def test_long_self_attention_is_a_kernel(report):
    """Three layers of a UNet at 32 x 32, in training on the way back twice more; the VAE's one."""
    step = 3 * 3 + 1
    expected = {"unet": 3, "encode": 0, "sampler": 2 * 3, "decode": 1, "tdm": step, "sdm": step}
    assert report["pallas_calls"] == expected[report["program"]]


def test_chips_exchange_no_more_than_they_must(report):
    """Parameters are gathered once a step of training, and never in sampling."""
    trains = report["program"] in ("tdm", "sdm")
    assert report["collectives_in_loops"] == {}
    assert bool(report["collectives"]) == trains
    assert (report["exchanged_gb"] > report["of_it_async_gb"] > 0) == trains


def test_collectives_are_found_inside_and_outside_of_loops():
    """The check above would see them."""
    rows = sharding.batched(sharding.make_mesh())
    x = sharding.to_mesh(np.ones((8, 3), np.float32), rows)

    def centre(x, _=None):
        return x - x.sum(axis=0, keepdims=True), None

    def found(function):
        hlo = HLO(jax.jit(function, out_shardings=rows).lower(x).compile().as_text())
        return hlo.collectives(in_loops=True), hlo.collectives(in_loops=False)

    assert found(lambda x: jax.lax.scan(centre, x, length=3)[0]) == ({"all-reduce": 1}, {})
    assert found(lambda x: centre(x)[0]) == ({}, {"all-reduce": 1})


PROGRAM = """HloModule jit_f

%start (param_0: bf16[4,8]) -> bf16[8,8] {
  %param_0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=7, dimensions={0}
  ROOT %custom-call.1 = (bf16[8,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (param_0: bf16[4,8]) -> bf16[8,8] {
  %param_0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%param_0), channel_id=7, dimensions={0}
}

%small (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  ROOT %negate.1 = f32[4]{0} negate(%x)
}

%large (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %negate.2 = f32[4]{0} negate(%x)
  ROOT %negate.3 = f32[4]{0} negate(%negate.2)
}

ENTRY %main (p: pred[], x: f32[4], w: bf16[4,8]) -> f32[4] {
  %p = pred[] parameter(0)
  %x = f32[4]{0:T(128)} parameter(1)
  %w = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(2)
  %copy-start.1 = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, bf16[4,8]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.1)
  %fusion.1 = f32[4]{0:T(128)S(1)} fusion(%x, %copy-done.1), kind=kLoop, calls=%small
  %all-reduce.1 = f32[4]{0:T(128)} all-reduce(%fusion.1), channel_id=8, to_apply=%small
  ROOT %conditional.1 = f32[4]{0} conditional(%p, %all-reduce.1, %x), true_computation=%small, false_computation=%large
}
"""  # noqa: E501


def test_traffic_of_the_main_memory_is_what_is_not_kept_on_the_chip():
    hlo = HLO(PROGRAM)
    assert hlo.hbm_bytes("small") == 2 * 16
    # The copy reads its source, the fusion one of its inputs; the dearer branch counts.
    assert hlo.hbm_bytes() == 64 + 16 + 16 + hlo.hbm_bytes("large")


def test_exchanges_are_counted_once_and_known_to_be_asynchronous():
    gather, reduce = HLO(PROGRAM).exchanges()
    assert gather == ("all-gather", 128, False, True)
    assert reduce == ("all-reduce", 16, False, False)
