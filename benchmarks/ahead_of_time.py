"""Compiles the programs of sampling and training for TPUs and GPUs, on a machine without any.

    pip install -r requirements-tpu.txt      # for TPUs
    pip install -e ".[cuda]"                 # for GPUs
    PYTHONPATH=. python benchmarks/ahead_of_time.py --target v5e:2x2 --program sampler
    PYTHONPATH=. python benchmarks/ahead_of_time.py --target h100:8 --fsdp 8 --program tdm sdm

Prints a report of each program as JSON: what the compiler says, what it left in the program, and
the roofline: the time that its arithmetic and its traffic would take alone, of which the longer
binds. Nothing runs. Exits with 1 if the sampling loop gathers anything from other devices, or if a
program does not fit its device. `--size full` is Stable Diffusion 1.5 at 512 px, whose compilation
takes minutes a program; `--trace` stops before. The program `peer` is the UNet call of diffusers'
Flax model, for which benchmarks/requirements.txt is needed too.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.devices import Device, open_target
from benchmarks.hlo import HLO
from configs import sdm_ffhq, tdm_ffhq
from fd_jax import params, sharding
from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.data.captions import MAX_SUBJECTS, MAX_TOKENS
from fd_jax.inference.compiled import CompiledSampler, ModelParams
from fd_jax.inference.inputs import SamplingInputs
from fd_jax.networks import Networks, make_networks
from fd_jax.sampling.solvers import init_state as init_solver
from fd_jax.sampling.stages import SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import ComputeConfig, ModelConfig, TrainConfig
from fd_jax.training.flops import abstract_batch, count_flops, count_step_flops
from fd_jax.training.learner import make_learner, model_task
from fd_jax.training.step import init_state
from fd_jax.training.trainer import jit_train_step

# The choice among Triton's kernels for products of matrices is made by timing them on the device.
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
PROGRAMS = ("unet", "encode", "sampler", "reusing", "decode", "tdm", "sdm")
SAMPLERS = ("sampler", "reusing")
GB = 1e9
# Latents of 32 x 32 with heads of 40 channels, as small as the kernel of attention takes them.
TINY = Architecture(
    UNetConfig(
        block_out_channels=(40, 40),
        has_attention=(True, False),
        layers_per_block=1,
        cross_attention_dim=32,
        num_heads=1,
        norm_num_groups=8,
        sample_size=32,
    ),
    VAEConfig(block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=4, sample_size=64),
    CLIPTextConfig(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2),
    CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        image_size=28,
        projection_dim=32,
    ),
)


class Program(NamedTuple):
    """A function to be compiled, and the shapes of its arguments."""

    function: Any  # what jax.jit returned
    args: tuple[Any, ...]
    static: dict[str, Any]
    flops: float  # of the whole program over all chips: all that runs, loops in full
    trips: float = 1  # of the loop that is nearly all of it, as if all of its body ran in each


@dataclasses.dataclass(frozen=True)
class Case:
    """What programs are compiled for."""

    size: str
    device: Device
    mesh: Mesh
    batch: int  # images a device
    remat: str = "none"
    ema: bool = False
    encoded: bool = False

    @property
    def configs(self) -> Architecture:
        return TINY if self.size == "tiny" else Architecture()

    @property
    def rows(self) -> int:
        return self.batch * self.mesh.size

    def networks(self, **options: str) -> Networks:
        return make_networks(self.configs, dtype="bfloat16", **options)


def make_program(name: str, case: Case) -> Program:
    """Returns one of PROGRAMS. Nothing is allocated."""
    if name in ("tdm", "sdm"):
        return train_program(name, case)
    makers = {
        "unet": unet_program,
        "peer": peer_program,
        "encode": encode_program,
        "sampler": sampler_program,
        "reusing": partial(sampler_program, interval=2),
        "decode": decode_program,
    }
    return makers[name](case)


def unet_program(case: Case) -> Program:
    """One call of the UNet with a guided batch: two rows an image."""
    config = case.configs.unet
    rows, side = sharding.batched(case.mesh), config.sample_size
    args = (
        on(sharding.replicated(case.mesh), in_bfloat16(case.networks().unet.abstract)),
        shape(rows, jnp.float32, 2 * case.rows, side, side, 4),
        shape(rows, jnp.int32, 2 * case.rows),
        shape(rows, jnp.bfloat16, 2 * case.rows, 77, config.cross_attention_dim),
    )

    def call(networks: Networks, *args: Any) -> jax.Array:
        params, x, t, context = args
        with sharding.on_mesh(case.mesh):
            return networks.unet.bind(params)(x, t, context)

    flops = count_flops(partial(call, case.networks(attention="plain")), *args)
    return Program(jax.jit(partial(call, case.networks())), args, {}, flops)


def peer_program(case: Case) -> Program:
    """The same call of diffusers' Flax UNet, which has NCHW inputs."""
    from diffusers import FlaxUNet2DConditionModel

    config, side = case.configs.unet, case.configs.unet.sample_size
    model = FlaxUNet2DConditionModel(
        sample_size=side,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.num_heads,  # which is what it takes this for
        dtype=jnp.bfloat16,
    )
    weights = jax.eval_shape(lambda: model.init_weights(jax.random.key(0)))
    rows = sharding.batched(case.mesh)
    args = (
        on(sharding.replicated(case.mesh), in_bfloat16(weights)),
        shape(rows, jnp.float32, 2 * case.rows, 4, side, side),
        shape(rows, jnp.int32, 2 * case.rows),
        shape(rows, jnp.bfloat16, 2 * case.rows, 77, config.cross_attention_dim),
    )

    def call(weights: Any, *args: Any) -> jax.Array:
        return model.apply({"params": weights}, *args).sample

    return Program(jax.jit(call), args, {}, count_flops(call, *args))


def sampling(case: Case, **options: str) -> tuple[CompiledSampler, Any]:
    """The programs of sampling, and the shapes of the parameters."""
    networks = case.networks(**options)
    parts = ("text_encoder", "image_encoder", "subject_fusion", "unet", "unet", "vae")
    weights = ModelParams(*(in_bfloat16(getattr(networks, part).abstract) for part in parts))
    return CompiledSampler(networks, weights, case.mesh), on(
        sharding.replicated(case.mesh), weights
    )


def sampler_program(case: Case, interval: int = 1) -> Program:
    """All steps of a picture, as `CompiledSampler` compiles them without a progress bar.

    Args:
        case: What it is compiled for.
        interval: Evaluations of each model between two that do not reuse deep features.
    """
    config, (programs, weights) = case.configs.unet, sampling(case)
    rows, side = sharding.batched(case.mesh), config.sample_size
    columns = NamedSharding(case.mesh, P(None, sharding.DATA_AXES))
    state = jax.eval_shape(init_solver, shape(rows, jnp.float32, case.rows, side, side, 4))
    state = state._replace(
        x=on(rows, state.x), x_prev=on(rows, state.x_prev), history=on(columns, state.history)
    )
    contexts = shape(columns, jnp.bfloat16, 3, case.rows, 77, config.cross_attention_dim)
    sampler = SamplerConfig(tdm_cache_interval=interval, sdm_cache_interval=interval)
    steps = make_steps(sampler, ScheduleConfig())
    if steps.reuses_features:
        width, dtype = config.block_out_channels[0], jnp.bfloat16
        features = shape(rows, dtype, 2 * case.rows, side, side, width)
        state = state._replace(features=(features, features))
    args = (weights, state, contexts, np.float32(5), steps)
    static = {"smoothing": "box", "trace": False}
    plain, _ = sampling(case, attention="plain")
    # Both count both networks whole in every step. An evaluation that reuses features is counted by
    # its share of the arithmetic.
    length = len(steps.stage)
    used = np.sum(steps.use_tdm) + np.sum(steps.use_sdm)
    reused = np.sum(steps.reuse_tdm) + np.sum(steps.reuse_sdm)
    share = float(used - reused * (1 - top_share(case))) / (2 * length)
    flops = count_flops(partial(plain._sample, **static), *args)
    return Program(programs._sample, args, static, flops * share, length * share)


def top_share(case: Case) -> float:
    """Share of a UNet's arithmetic in its prediction from deep features."""
    whole = unet_program(case)
    _, x, t, context = whole.args
    features = jax.ShapeDtypeStruct(
        (*x.shape[:3], case.configs.unet.block_out_channels[0]), x.dtype
    )

    def call(params: Any, *args: Any) -> jax.Array:
        return case.networks(attention="plain").unet.bind(params).from_features(*args)

    return count_flops(call, whole.args[0], x, t, context, features) / whole.flops


def encode_program(case: Case) -> Program:
    """Prompts and photographs to contexts."""
    programs, weights = sampling(case)
    rows, side = sharding.batched(case.mesh), case.configs.image_encoder.image_size
    requests = SamplingInputs(
        input_ids=shape(rows, jnp.int32, case.rows, MAX_TOKENS),
        null_ids=shape(rows, jnp.int32, case.rows, MAX_TOKENS),
        subject_pixels=shape(rows, jnp.float32, case.rows, MAX_SUBJECTS, side, side, 3),
        subject_token_index=shape(rows, jnp.int32, case.rows, MAX_SUBJECTS),
        has_subject=shape(rows, jnp.bool_, case.rows, MAX_SUBJECTS),
    )
    args = (weights, requests)
    return Program(programs._encode, args, {}, count_flops(programs._encode, *args))


def decode_program(case: Case) -> Program:
    """Latents to pictures, one after another on each chip."""
    programs, weights = sampling(case)
    side = case.configs.unet.sample_size
    latents = shape(sharding.batched(case.mesh), jnp.float32, case.rows, side, side, 4)
    plain, _ = sampling(case, attention="plain")
    flops = count_flops(plain._decode, weights.vae, latents)
    return Program(programs._decode, (weights.vae, latents), {}, flops, case.batch)


def train_program(kind: str, case: Case) -> Program:
    """A step of training, as `fd_jax.training` compiles it."""
    mesh, configs = case.mesh, case.configs
    base: TrainConfig = {"tdm": tdm_ffhq.CONFIG, "sdm": sdm_ffhq.CONFIG}[kind]
    sizes = ModelConfig(
        unet=configs.unet,
        vae=configs.vae,
        text_encoder=configs.text_encoder,
        image_encoder=configs.image_encoder,
    )
    data = dataclasses.replace(
        base.data,
        batch_size=case.rows,
        resolution=configs.unet.sample_size * configs.vae.downscale,
        subject_resolution=configs.image_encoder.image_size,
        latent_cache=pathlib.Path("latent_cache") if case.encoded else None,
    )
    optimizer = dataclasses.replace(base.optimizer, ema_decay=0.9999 if case.ema else None)
    compute = ComputeConfig(remat=case.remat)
    config = dataclasses.replace(base, model=sizes, data=data, optimizer=optimizer, compute=compute)
    if case.size == "tiny":  # which has other levels
        levels = ("down_blocks.0", "up_blocks.1")
        objective = dataclasses.replace(config.objective, localization_levels=levels)
        config = dataclasses.replace(config, objective=objective)
    networks = case.networks(remat=case.remat)
    learner = make_learner(config, [], networks)
    make = partial(init_state, optimizer=learner.optimizer, keep_ema=case.ema)
    state = sharding.abstract_with_shardings(jax.eval_shape(make, learner.trained), mesh)
    cast = jax.eval_shape(partial(params.cast, dtype=networks.dtype), learner.frozen)
    args = (
        state,
        sharding.abstract_with_shardings(cast, mesh),
        on(sharding.batched(mesh), abstract_batch(learner.task, data)),
        on(sharding.replicated(mesh), jax.eval_shape(lambda: jax.random.key(0))),
    )
    step = jit_train_step(learner, state, mesh, config)
    flops = count_step_flops(model_task(learner.task), *args[:2], data)
    return Program(step, args, {}, flops)


def shape(where: NamedSharding, dtype: Any, *dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype, sharding=where)


def on(where: NamedSharding, tree: Any) -> Any:
    """The shapes of `tree`, all laid out alike."""
    return jax.tree.map(lambda leaf: shape(where, leaf.dtype, *leaf.shape), tree)


def in_bfloat16(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), tree)


def report(name: str, program: Program, case: Case, *, compiles: bool) -> dict[str, Any]:
    """Compiles a program and returns what is said of it; only traces it if it is not compiled."""
    mesh = case.mesh
    begin = time.perf_counter()
    lowered = program.function.lower(*program.args, **program.static)
    found: dict[str, Any] = {
        "program": name,
        "size": case.size,
        "devices": f"{mesh.size} {mesh.devices.flat[0].device_kind}, fsdp {mesh.shape['fsdp']}",
        "images_per_device": case.batch,
        "trace_seconds": round(time.perf_counter() - begin, 1),
        "tflop_per_image": round(program.flops / case.rows / 1e12, 6),
    }
    if not compiles:
        return found
    begin = time.perf_counter()
    compiled = lowered.compile(compiler_options=OPTIONS if case.device.gpu else {})
    seconds = time.perf_counter() - begin
    memory, hlo = compiled.memory_analysis(), HLO(compiled.as_text())
    exchanges = hlo.exchanges()
    costs = compiled.cost_analysis()  # None for GPUs
    traffic = hlo.hbm_bytes() * program.trips  # of one device
    seconds_of = {
        "arithmetic": program.flops / mesh.size / case.device.peak,
        "traffic": traffic / case.device.bandwidth,
    }
    return found | {
        "compile_seconds": round(seconds, 1),
        "memory_gb": round(case.device.memory / GB, 1),
        "peak_gb": round(memory.peak_memory_in_bytes / GB, 6),
        "argument_gb": round(memory.argument_size_in_bytes / GB, 6),
        "temp_gb": round(memory.temp_size_in_bytes / GB, 6),
        "code_gb": round(memory.generated_code_size_in_bytes / GB, 6),
        # What is inside of kernels is in neither, but for what goes into and out of them.
        "traffic_gb_per_image": round(traffic / case.batch / GB, 6),
        "accessed_gb_per_image": costs
        and round(costs["bytes accessed"] * program.trips / case.batch / GB, 6),
        "seconds": {name: round(value, 9) for name, value in seconds_of.items()},
        "bound_by": max(seconds_of, key=seconds_of.__getitem__),
        "collectives": hlo.collectives(in_loops=False),
        "exchanged_gb": round(sum(x.size for x in exchanges) / GB, 6),
        "of_it_async_gb": round(sum(x.size for x in exchanges if x.is_async) / GB, 6),
        "collectives_in_loops": hlo.collectives(in_loops=True),
        "unet_bodies": hlo.unet_convolutions / convolutions(case),
        "kernels": hlo.kernels(),
    }


def convolutions(case: Case) -> int:
    """How many of them one UNet has."""
    program = unet_program(case)
    return str(program.function.trace(*program.args).jaxpr).count("conv_general_dilated[")


def reserved_gb(found: dict[str, Any], device: Device) -> float:
    """Returns the memory that a device needs: on a GPU temporaries are one allocation, gaps too."""
    peak = found.get("peak_gb", 0.0)
    if not device.gpu or "temp_gb" not in found:
        return peak
    return max(peak, found["argument_gb"] + found["temp_gb"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--target", default="v5e:2x2", help="v5e:16x16, v5p:2x2x1, h100:8, a100:1, b200:1, ..."
    )
    parser.add_argument("--slices", type=int, default=1, help="slices of that topology")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny")
    choices = (*PROGRAMS, "peer")
    parser.add_argument("--program", choices=choices, nargs="+", default=PROGRAMS)
    parser.add_argument(
        "--fsdp", type=int, default=1, help="devices that parameters are divided over"
    )
    parser.add_argument(
        "--batch", type=int, default=[1], nargs="+", help="images a device; of several, each"
    )
    parser.add_argument("--remat", choices=("none", "dots", "blocks"), default="none")
    parser.add_argument("--ema", action="store_true", help="training keeps averages (EMA)")
    parser.add_argument("--encoded", action="store_true", help="training reads encodings of data")
    parser.add_argument("--trace", action="store_true", help="trace and count, do not compile")
    arguments = parser.parse_args()

    device, devices = open_target(arguments.target, arguments.slices)
    mesh, faults = sharding.make_mesh(devices, fsdp=arguments.fsdp), []
    for name, batch in itertools.product(arguments.program, arguments.batch):
        case = Case(
            arguments.size,
            device,
            mesh,
            batch,
            remat=arguments.remat,
            ema=arguments.ema,
            encoded=arguments.encoded,
        )
        found = report(name, make_program(name, case), case, compiles=not arguments.trace)
        print(json.dumps(found, indent=2), flush=True)
        if name in SAMPLERS and found.get("collectives_in_loops"):
            faults.append("the sampling loop moves numbers between devices, expected none")
        if (size := reserved_gb(found, device)) > (room := device.memory / GB):
            taken = f"{name} takes {size:.1f} GB of a device with {batch} images"
            faults.append(f"{taken}, expected at most {room:.1f}")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
