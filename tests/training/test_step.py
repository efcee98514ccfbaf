"""One step, however it is computed, is the same."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.training.optimizer import OptimizerConfig, learning_rate_factors, make_optimizer
from fd_jax.training.prefetch import to_batch
from fd_jax.training.step import init_state, make_eval_step, make_train_step
from tests.helpers.training import make_task, random_batch

TRAIN = (("unet/", 1.0), ("subject_fusion/", 1.0), ("image_encoder/layers/-1/", 0.5))
CONFIG = OptimizerConfig(learning_rate=1e-5, train=TRAIN)


def run(leaves, *, config=CONFIG, devices=1, fsdp=1, steps=2, accumulation=1, remat="none"):
    """Returns state, metrics of each step, and the frozen parameters afterwards."""
    mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    factors = learning_rate_factors(config, leaves)
    optimizer = make_optimizer(config, factors, 10)
    trained = {path: leaves[path] for path in factors}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in factors}
    make = partial(init_state, optimizer=optimizer, keep_ema=True)
    layout = sharding.shardings(jax.eval_shape(make, trained), mesh)
    state = jax.jit(make, out_shardings=layout)(trained)
    where = sharding.shardings(frozen, mesh)
    frozen = jax.tree.map(lambda leaf, s: jax.device_put(leaf, s), frozen, where)
    # Without the mask's coin, which two seeds might draw alike.
    task = make_task(remat=remat, mask_probability=1.0)
    step = make_train_step(task, optimizer, mesh, ema_decay=0.9, accumulation=accumulation)
    step = jax.jit(step, out_shardings=(layout, None))
    metrics = []
    for i in range(steps):
        batch = to_batch(random_batch(8, seed=i).examples, mesh)
        state, seen = step(state, frozen, batch, jax.random.key(5))
        metrics.append({name: float(value) for name, value in seen.items()})
    return state, metrics, frozen


@pytest.fixture(scope="module")
def plain(leaves):
    return run(leaves)


def assert_same(found, expected):
    for a, b in zip(found[1], expected[1], strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7)
    # First moments are sums of gradients. Of the parameters themselves Adam's first steps say
    # little: they have the size of the learning rate, also where a gradient is mere rounding.
    # That rate is small, so that the second gradient is that of the same parameters.
    mine, other = (state.opt_state[1].mu for state in (found[0], expected[0]))
    smallest = 1e-6 * np.sqrt(sum(np.sum(np.square(leaf)) for leaf in other.values()))
    for path, leaf in other.items():
        error = np.linalg.norm(np.asarray(mine[path]) - np.asarray(leaf))
        assert error < 1e-4 * np.linalg.norm(leaf) + smallest, path


VARIANTS = (
    pytest.param({"devices": 8}, id="data", marks=pytest.mark.slow),
    pytest.param(
        {"devices": 8, "fsdp": 8, "remat": "blocks"},
        id="fsdp, remat of blocks",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"devices": 4, "fsdp": 2, "accumulation": 2, "remat": "dots"},
        id="mixed, accumulation, remat of all but dots",
    ),
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_the_same_however_it_is_computed(leaves, plain, variant):
    found = run(leaves, **variant)
    assert_same(found, plain)
    # And so is the state sharded: parameters, EMA parameters and moments alike.
    state, path = found[0], "unet/down_blocks/1/resnets/0/conv1/kernel"
    adam = state.opt_state[1]
    for leaf in (state.params[path], state.ema_params[path], adam.mu[path], adam.nu[path]):
        share = leaf.addressable_shards[0].data.size
        assert share * variant.get("fsdp", 1) == leaf.size


def test_what_trains_moves_and_what_is_frozen_does_not(leaves, plain):
    state, _, frozen = plain
    factors = learning_rate_factors(CONFIG, leaves)
    assert set(state.params) == set(factors) == set(state.ema_params)
    moments = jax.tree.leaves(state.opt_state)
    assert sum(np.size(leaf) for leaf in moments) < 2.01 * sum(leaves[p].size for p in factors)
    for path, leaf in frozen.items():
        assert path not in state.params
        np.testing.assert_array_equal(leaf, leaves[path])
    still = [path for path in factors if np.array_equal(state.params[path], leaves[path])]
    assert still == []


def test_rates_scale_the_steps(leaves, plain):
    """Adam moves what has the same gradient twice by the learning rate in each of the two steps."""
    state, _, _ = plain
    moves = {
        part: max(
            np.abs(np.asarray(state.params[path]) - leaves[path]).max()
            for path in state.params
            if path.startswith(part)
        )
        for part in ("unet/", "image_encoder/")
    }
    rate = CONFIG.learning_rate
    assert moves["unet/"] == pytest.approx(2 * rate, rel=2e-2)
    assert moves["image_encoder/"] == pytest.approx(2 * 0.5 * rate, rel=2e-2)


def test_held_out_losses_do_not_depend_on_the_devices(leaves):
    found = []
    for devices in (1, 8):
        mesh = sharding.make_mesh(jax.devices()[:devices])
        measure = jax.jit(make_eval_step(make_task(), mesh))
        batch = to_batch(random_batch(8).examples, mesh)
        on_mesh = sharding.to_mesh(leaves, sharding.replicated(mesh))
        metrics = measure(on_mesh, {}, batch, jax.random.key(0))
        found.append({name: float(value) for name, value in metrics.items()})
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.slow
def test_bfloat16_is_near(leaves, plain):
    """The loss, not the parameters: Adam's first steps follow the sign of tiny gradients."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    tasks = [make_task(), make_task()]
    half = tasks[1].networks._replace(dtype=jnp.dtype(jnp.bfloat16))
    tasks[1] = dataclasses.replace(tasks[1], networks=half)
    batch = to_batch(random_batch(8).examples, mesh)
    results = [
        float(jax.jit(make_eval_step(task, mesh))(leaves, {}, batch, jax.random.key(0))["loss"])
        for task in tasks
    ]
    assert results[0] == pytest.approx(results[1], rel=2e-2)
