"""That the programs compile for TPUs and GPUs, and to what, on a machine without any."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.ahead_of_time import PROGRAMS, reserved_gb
from benchmarks.devices import Device, open_target
from benchmarks.hlo import HLO
from fd_jax import sharding
from fd_jax.ops.attention import attention

ROOT = pathlib.Path(__file__).parents[1]
TARGETS = {"tpu": "v5e:2x2", "gpu": "h100:4"}
TRAINING = ("tdm", "sdm")


def skip_without(platform):
    """Skips a test where the compiler of a platform is not installed."""
    plugins, how = {
        "tpu": (["libtpu"], "pip install -r requirements-tpu.txt"),
        "gpu": (["jax_cuda12_plugin", "jax_cuda13_plugin"], 'pip install -e ".[cuda]"'),
    }[platform]
    if not any(map(importlib.util.find_spec, plugins)):
        pytest.skip(f"{plugins[0]} is not installed: {how}")


@pytest.fixture(scope="module", params=[(x, y) for x in TARGETS for y in PROGRAMS], ids="-".join)
def report(request):
    """What benchmarks/ahead_of_time.py prints of a tiny program, compiled for four devices."""
    platform, program = request.param
    skip_without(platform)
    # In a process of its own, as the library for TPUs stays loaded.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options = [f"--target={TARGETS[platform]}", "--fsdp=2", "--program", program]
    done = subprocess.run(
        [sys.executable, "benchmarks/ahead_of_time.py", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout) | {"platform": platform}


@pytest.mark.parametrize(("gpu", "expected"), [({"capability": 90}, 85.5), (None, 73.0)])
def test_a_gpu_reserves_all_temporaries(gpu, expected):
    """Gaps between them count, on a TPU only what is live at once."""
    found = {"peak_gb": 73.0, "argument_gb": 15.25, "temp_gb": 70.25}
    device = Device(85e9, 3e12, 1e15, gpu)

    assert reserved_gb(found, device) == expected
    assert reserved_gb({}, device) == 0  # traced, not compiled


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


EXCHANGES = """
import re

import numpy as np

from benchmarks import ahead_of_time
from benchmarks.devices import open_target
from fd_jax import sharding

device, devices = open_target("v5e:4x4", slices=2)
mesh = sharding.make_mesh(devices, fsdp=8)
case = ahead_of_time.Case("tiny", device, mesh, 1)
program = ahead_of_time.make_program("tdm", case)
text = program.function.lower(*program.args, **program.static).compile().as_text()
slices = np.array([device.slice_index for device in mesh.devices.flat])
groups = re.findall(r" all-gather(?:-start)?\\(.*replica_groups={({[0-9,{}]*})}", text)
assert len(groups) == len(re.findall(r" all-gather(?:-start)?\\(", text)) > 0
for text_of_groups in groups:
    for group in re.findall("{([0-9,]+)}", text_of_groups):
        assert len(set(slices[[int(i) for i in group.split(",")]])) == 1, group
print(sorted(set(re.findall('megascale_(?:transfer_type|reduce_operation)="([A-Z_]+)"', text))))
"""


@pytest.mark.slow
def test_only_sums_go_between_slices():
    """A training step on two slices of 16 chips gathers parameters within each of them."""
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    done = subprocess.run(
        [sys.executable, "-c", EXCHANGES], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['ALL_REDUCE', 'SUM']"


def test_programs_compile_without_the_device(report):
    kind, room = {"tpu": ("TPU v5 lite", 16), "gpu": ("NVIDIA H100 80GB HBM3", 84.9)}[
        report["platform"]
    ]
    assert report["devices"] == f"4 {kind}, fsdp 2"
    assert 0 < report["peak_gb"] < report["memory_gb"] == room
    assert report["traffic_gb_per_image"] > 0
    assert report["seconds"]["arithmetic"] > 0
    assert report["bound_by"] == max(report["seconds"], key=report["seconds"].get)


def test_programs_hold_few_copies_of_a_unet(report):
    """Each takes compile time and memory: one a network, and the top alone for deep features."""
    expected = {"unet": 1, "encode": 0, "sampler": 2, "decode": 0, "tdm": 1, "sdm": 1}
    if report["program"] == "reusing":
        assert 2 < report["unet_bodies"] < 2.5
    else:
        assert report["unet_bodies"] == expected[report["program"]]


def test_attention_is_a_kernel(report):
    """On a TPU self-attention of many pixels, with two kernels on its way back. On a GPU all that
    has heads of a multiple of 8 channels, but for maps that the localization loss reads."""
    program, kernels = report["program"], report["kernels"]
    if report["platform"] == "tpu":  # three layers at 32 x 32, and the VAE's one
        step = 3 * 3 + 1
        expected = {"unet": 3, "sampler": 2 * 3, "decode": 1, "tdm": step, "sdm": step}
        expected["reusing"] = 2 * (3 + 1)  # the last layer again, alone
        assert kernels.get("tpu_custom_call", 0) == expected.get(program, 0)
        return
    forward, back = (
        kernels.get("__cudnn$fmhaSoftmax", 0),
        kernels.get("__cudnn$fmhaSoftmaxBackward", 0),
    )
    # Four layers, each of self-attention and cross-attention; three of the latter give maps.
    expected = {
        "unet": (8, 0),
        "sampler": (2 * 8, 0),
        "reusing": (2 * (8 + 2), 0),
        "decode": (1, 0),
        "tdm": (9, 8),
        "sdm": (6, 5),
    }
    assert (forward, back) == expected.get(program, (0, 0))


def test_devices_exchange_no_more_than_they_must(report):
    """Parameters are gathered once a step of training, and never in sampling."""
    trains = report["program"] in TRAINING
    assert report["collectives_in_loops"] == {}
    assert bool(report["collectives"]) == trains
    assert (report["exchanged_gb"] >= report["of_it_async_gb"] > 0) == trains


# Queries, keys, heads and channels a head, of Stable Diffusion 1.5 at 512 px: its UNet's levels to
# themselves and to the prompt, and its autoencoder. CLIP's 257 patches are tried as well.
FORMS = [
    *((side**2, keys or side**2, 8, 320 * times // 8) for keys in (None, 77)
      for side, times in ((64, 1), (32, 2), (16, 4), (8, 4))),
    (4096, 4096, 1, 512),
    (77, 77, 12, 64),
    (257, 257, 16, 64),
]  # fmt: skip


@pytest.fixture(
    scope="module",
    params=["h100:1", *(pytest.param(x, marks=pytest.mark.slow) for x in ("a100:1", "b200:1"))],
)
def all_forms(request):
    """All forms of attention and their gradients, compiled for a GPU."""
    skip_without("gpu")
    _, devices = open_target(request.param)
    mesh = sharding.make_mesh(devices)
    where = NamedSharding(mesh, P())

    def shape(length, heads, dim):
        return jax.ShapeDtypeStruct((2, length, heads, dim), jnp.bfloat16, sharding=where)

    def loss(arrays):
        with sharding.on_mesh(mesh):
            return sum(attention(*qkv).astype(jnp.float32).sum() for qkv in arrays)

    arrays = [
        (shape(queries, heads, dim), *[shape(keys, heads, dim)] * 2)
        for queries, keys, heads, dim in FORMS
    ]
    step = jax.jit(jax.value_and_grad(loss))
    return step.lower(arrays).compile(compiler_options={"xla_gpu_enable_triton_gemm": False})


def test_all_forms_of_attention_compile_for_a_gpu(all_forms):
    """The kernel is taken wherever heads have no more than 128 channels, on the way back too."""
    fast = sum(dim <= 128 for *_, dim in FORMS)
    kernels = HLO(all_forms.as_text()).kernels()
    assert kernels["__cudnn$fmhaSoftmax"] == kernels["__cudnn$fmhaSoftmaxBackward"] == fast


def test_no_form_of_attention_holds_all_probabilities(all_forms):
    """Those of the autoencoder alone would be 2 x 4096 x 4096 numbers, of which each has a few."""
    assert all_forms.memory_analysis().temp_size_in_bytes < 4 * 2 * 4096**2


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
