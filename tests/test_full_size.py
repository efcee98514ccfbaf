"""Stable Diffusion 1.5 at its real size: minutes, 8 GB of memory and 4 GB of disk."""

import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.diffusers import load_folder, write_folder
from fd_jax.checkpoints.placement import Placement
from fd_jax.networks import make_networks
from fd_jax.ops.layers import num_params
from fd_jax.sampling.generate import sample
from fd_jax.sampling.guidance import as_eps, guided
from fd_jax.sampling.solvers import init_state
from fd_jax.sampling.stages import SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig
from tests.helpers.untrained import random_params


def test_number_of_parameters():
    assert num_params(make_networks(Architecture()).unet.abstract) == 859_520_964


@pytest.mark.slow
def test_a_written_unet_loads_and_runs_a_step(tmp_path):
    configs = Architecture()
    network = make_networks(configs, attention="by_head").unet
    written = random_params(network.abstract, 0, "unet")
    write_folder("unet", tmp_path, written, configs.unet)
    del written
    where = sharding.replicated(sharding.make_mesh(jax.devices()[:1]))
    placement = Placement("float32", lambda path, shape: where)
    params, left = load_folder("unet", tmp_path, network.abstract, placement)
    assert left == []

    x = np.random.default_rng(0).standard_normal((1, 64, 64, 4), np.float32)
    contexts = np.random.default_rng(1).standard_normal((3, 1, 77, 768), np.float32)
    steps = make_steps(SamplerConfig(mode="tdm", num_steps=1), ScheduleConfig())

    @jax.jit
    def run(params, x, contexts, steps):
        unet = guided(as_eps(network.bind(params), ScheduleConfig()), jnp.float32(5))
        return sample(unet, unet, init_state(x), contexts, steps)[0].x

    out = run(params, x, contexts, steps)
    assert out.shape == x.shape
    assert np.isfinite(out).all()
    assert np.abs(out - x).max() > 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 24, f"{peak:.1f} GiB"
