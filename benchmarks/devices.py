"""Devices that programs are compiled for without having any."""

import os
from typing import Any, NamedTuple

# There is no device to ask, and whether another process has loaded the library matters to none.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}

from jax.experimental import topologies


class Device(NamedTuple):
    """What one device has, by its maker's data sheet."""

    memory: float  # bytes
    bandwidth: float  # of its memory, bytes/s
    peak: float  # FLOP/s of dense products of bfloat16 matrices
    gpu: dict[str, Any] | None = None  # what the compiler has to know of a GPU


def _gpu(name: str, capability: int, cores: int, shared_kb: int, **more: float) -> dict[str, Any]:
    return {
        "device_description_str": name,
        "capability": capability,
        "core_count": cores,
        "shared_memory_per_core": shared_kb * 1024,
        "shared_memory_per_block_optin": (shared_kb - 1) * 1024,
        **more,
    }


DEVICES = {
    "v4": Device(32e9, 1.228e12, 275e12),
    "v5e": Device(16e9, 0.819e12, 197e12),
    "v5p": Device(95e9, 2.765e12, 459e12),
    "v6e": Device(32e9, 1.64e12, 918e12),
    "a100": Device(
        85_100_068_864,
        2.039e12,
        312e12,
        _gpu(
            "NVIDIA A100-SXM4-80GB",
            capability=8,
            cores=108,
            shared_kb=164,
            fpus_per_core=64,
            l2_cache_size=40 * 2**20,
            clock_rate_ghz=1.41,
        ),
    ),
    "h100": Device(
        84_929_347_584,
        3.352e12,
        989e12,
        _gpu(
            "NVIDIA H100 80GB HBM3",
            capability=9,
            cores=132,
            shared_kb=228,
            fpus_per_core=128,
            l2_cache_size=50 * 2**20,
            clock_rate_ghz=1.98,
        ),
    ),
    "b200": Device(
        191_514_411_008,
        7.672e12,
        2250e12,
        _gpu(
            "NVIDIA B200",
            capability=10,
            cores=148,
            shared_kb=228,
            fpus_per_core=128,
            l2_cache_size=132_644_864,
            clock_rate_ghz=1.965,
        ),
    ),
}

_GPU_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory_per_core}
  shared_memory_per_block_optin: {shared_memory_per_block_optin}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: {core_count}
  fpus_per_core: {fpus_per_core}
  clock_rate_ghz: {clock_rate_ghz}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: {l2_cache_size}
  memory_bandwidth: {bandwidth:.0f}
  device_memory_size: {memory:.0f}
  cuda_compute_capability {{ major: {capability} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{device_description_str}"
"""


def open_target(target: str, slices: int = 1) -> tuple[Device, Any]:
    """Returns the kind of device of a target, and its devices.

    Args:
        target: `v5e:2x2`, a TPU and its topology, or `h100:8`, a GPU and how many.
        slices: How many of that topology, of TPUs.
    """
    kind, _, layout = target.partition(":")
    if kind not in DEVICES or not layout:
        raise SystemExit(f"--target is {target!r}, expected one of {list(DEVICES)} and :1 or :2x2")
    device = DEVICES[kind]
    if device.gpu is None:
        options = {"num_slices": slices} if slices > 1 else {}
        topology = topologies.get_topology_desc(platform="tpu", topology_name=target, **options)
    else:
        config = _GPU_CONFIG.format(memory=device.memory, bandwidth=device.bandwidth, **device.gpu)
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=config, topology=f"1x1x{layout}"
        )
    return device, topology.devices
