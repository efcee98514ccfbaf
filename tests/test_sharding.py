"""The mesh, and compiled functions, which leave a sharded batch where it is."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from fd_jax import sharding
from fd_jax.errors import InputError
from fd_jax.inference.compiled import CompiledSampler, ModelParams
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.networks import make_networks
from fd_jax.sampling.stages import SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig
from tests.helpers.networks import TINY
from tests.helpers.untrained import random_params

CONFIGS = TINY._replace(
    text_encoder=dataclasses.replace(TINY.text_encoder, num_heads=3, vocab_size=60, max_length=7)
)
ROWS, SIZE = 16, (6, 10)  # two images a device
COLLECTIVE = re.compile(
    r"= .*\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\("
)


def test_mesh_of_all_devices():
    mesh = sharding.make_mesh(fsdp=2)

    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert list(mesh.devices.flat) == jax.devices()


def test_mesh_of_some_devices():
    mesh = sharding.make_mesh(jax.devices()[2:5], fsdp=3)

    assert dict(mesh.shape) == {"data": 1, "fsdp": 3}
    assert list(mesh.devices.flat) == jax.devices()[2:5]


@pytest.mark.parametrize(("count", "fsdp"), [(8, 3), (8, 0), (8, -2), (8, 16), (3, 2)])
def test_mesh_that_devices_do_not_fill(count, fsdp):
    message = f"fsdp is {fsdp}, expected a divisor of {count}, the devices"
    with pytest.raises(InputError, match=message):
        sharding.make_mesh(jax.devices()[:count], fsdp=fsdp)


def test_mesh_without_devices():
    with pytest.raises(InputError, match="no devices"):
        sharding.make_mesh([])


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_rows_are_divided_over_all_devices(fsdp):
    mesh = sharding.make_mesh(fsdp=fsdp)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)

    array = sharding.to_mesh({"rows": rows}, sharding.batched(mesh))["rows"]

    np.testing.assert_array_equal(array, rows)
    for i, shard in enumerate(sorted(array.addressable_shards, key=lambda s: s.device.id)):
        np.testing.assert_array_equal(shard.data, rows[2 * i : 2 * i + 2])


def test_replicated_arrays_are_whole_everywhere():
    tree = {"a": np.arange(3), "b": [np.array(2.5, np.float32)]}

    on_mesh = sharding.to_mesh(tree, sharding.replicated(sharding.make_mesh()))

    jax.tree.map(np.testing.assert_array_equal, on_mesh, tree)
    for array in jax.tree.leaves(on_mesh):
        assert array.is_fully_replicated
        assert len(array.sharding.device_set) == 8
    assert on_mesh["a"].dtype == np.arange(3, dtype=np.int32).dtype


@pytest.mark.parametrize(("count", "size", "rows"), [(1, 1, 8), (8, 8, 8), (17, 5, 8), (40, 9, 16)])
def test_whole_batches(count, size, rows):
    """Every row once, in order, and then the last row again."""
    batches = sharding.whole_batches(count, size, sharding.make_mesh())

    assert batches.shape == (-(-count // rows), rows)
    assert batches.ravel()[:count].tolist() == list(range(count))
    assert set(batches.ravel()[count:].tolist()) <= {count - 1}


def test_no_rows_make_no_batches():
    assert sharding.whole_batches(0, 4, sharding.make_mesh()).shape == (0, 8)


@pytest.fixture(scope="module")
def compiled():
    """Jitted functions of the sampler, compiled for two images per device."""
    networks = make_networks(CONFIGS, attention="chunked")
    parts = ("text_encoder", "image_encoder", "subject_fusion", "unet", "unet", "vae")
    params = ModelParams(*(random_params(getattr(networks, p).abstract, 0, p) for p in parts))
    mesh = sharding.make_mesh(fsdp=2)
    params, rows = sharding.to_mesh(params, sharding.replicated(mesh)), sharding.batched(mesh)
    requests = SamplingInputs(
        np.full((ROWS, 7), 3, np.int32),
        np.full((ROWS, 7), 59, np.int32),
        np.full((ROWS, 2, 28, 28, 3), 0.5, np.float32),
        np.array([[1, 4]] * ROWS, np.int32),
        np.array([[True, False]] * ROWS),
    )
    requests = sharding.to_mesh(requests, rows)
    seeds = sharding.to_mesh((np.arange(ROWS, dtype=np.uint32), np.zeros(ROWS, np.int32)), rows)
    size = dict(zip(("height", "width"), SIZE, strict=True))
    given = sharding.to_mesh(np.zeros((ROWS, *SIZE, 4), np.float32), rows)
    steps = make_steps(SamplerConfig(num_steps=3), ScheduleConfig())
    programs = CompiledSampler(networks, params, mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fd_jax.ops.attention.QUERY_BLOCK", 20)  # of 60 queries
        contexts, state = programs._encode(params, requests), programs._start(*seeds, **size)
        inputs = (params, state, contexts, np.float32(5), steps)
        # Reusing deep features, which are a part of the state.
        reusing = programs._start(*seeds, **size, reuses_features=True)
        sampler = SamplerConfig(num_steps=3, tdm_cache_interval=2, sdm_cache_interval=2)
        others = (params, reusing, contexts, np.float32(5), make_steps(sampler, ScheduleConfig()))
        lowered = {
            "encode": programs._encode.lower(params, requests),
            "start": programs._start.lower(*seeds, **size),
            "continue": programs._continue.lower(given, *seeds),
            "sample": programs._sample.lower(*inputs, smoothing="box", trace=True),
            "start reusing": programs._start.lower(*seeds, **size, reuses_features=True),
            "reusing": programs._sample.lower(*others, smoothing="box", trace=False),
            "decode": programs._decode.lower(params.vae, state.x),
        }
        return {name: program.compile() for name, program in lowered.items()}


def collectives(program):
    """Returns the instructions that move numbers between devices."""
    text = program.as_text()
    assert f"num_partitions={jax.device_count()}" in text
    return [line.strip() for line in text.splitlines() if COLLECTIVE.search(line)]


@pytest.mark.parametrize(
    "name", ["encode", "start", "continue", "sample", "start reusing", "reusing", "decode"]
)
def test_programs_leave_every_image_on_its_device(compiled, name):
    """Nothing moves between devices: images have nothing to do with one another."""
    assert collectives(compiled[name]) == []


@pytest.mark.parametrize(
    ("name", "goes_on"),
    [("start", "sample"), ("continue", "sample"), ("start reusing", "reusing")],
)
def test_the_sampler_goes_on_from_its_own_state(compiled, name, goes_on):
    """It is laid out as the first one, so that the second part of a table compiles nothing."""
    first, (later, _) = compiled[name].output_shardings, compiled[goes_on].output_shardings

    first, later = (jax.tree.leaves(shardings) for shardings in (first, later))
    for a, b, ndim in zip(first, later, (4, 4, 5, 1, 4, 4)[: len(first)], strict=True):
        assert a.is_equivalent_to(b, ndim)


def test_collectives_are_found_where_there_are_some():
    """The check above would see them."""
    rows = sharding.batched(sharding.make_mesh())
    x = sharding.to_mesh(np.ones((8, 3), np.float32), rows)

    assert collectives(jax.jit(lambda x: x - x.sum(axis=0, keepdims=True)).lower(x).compile())
    assert collectives(jax.jit(lambda x: x[::-1], out_shardings=rows).lower(x).compile())
