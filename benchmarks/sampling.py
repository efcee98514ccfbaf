"""Sampling against PyTorch and against diffusers' Flax, in one run.

    pip install -r benchmarks/requirements.txt
    PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/sampling.py   # on a CPU

The peers are called in turn, round after round, so that whatever else the machine does hits all
of them; a ratio is that of the medians. Their outputs are compared too.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from benchmarks.peers import (
    in_turn,
    nchw,
    nhwc,
    random_weights,
    relative,
    show,
    torch_model,
    torch_sample,
)
from fd_jax import sharding
from fd_jax.architecture import Architecture
from fd_jax.checkpoints.config_json import config_to_json
from fd_jax.checkpoints.torch.names import UNET, VAE, Part
from fd_jax.compilation import compiler_options
from fd_jax.networks import Networks, make_networks
from fd_jax.sampling.generate import sample
from fd_jax.sampling.guidance import as_eps, guided
from fd_jax.sampling.solvers import init_state
from fd_jax.sampling.stages import SamplerConfig, Steps, make_steps
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.types import Params
from tests.helpers.untrained import CONFIGS

UNET_PEERS = ("fd_jax", "PyTorch diffusers", "Flax diffusers")

compilations: list[float] = []


def count_compilations(event: str, seconds: float, **_) -> None:
    if "backend_compile" in event:
        compilations.append(seconds)


def inputs(configs: Architecture, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents, and contexts of the negative prompt, the prompt, and the prompt with subjects."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, 4), np.float32)
    shape = (3, batch, 77, configs.unet.cross_attention_dim)
    return x, rng.standard_normal(shape, np.float32)


def our_unet(
    configs: Architecture, dtype: str = "float32"
) -> tuple[Callable[..., jax.Array], tuple]:
    """The UNet, not yet compiled, and arguments of batch 2, on the device."""
    network = make_networks(configs, dtype=dtype).unet
    (x, contexts), t = inputs(configs, 2, configs.unet.sample_size), np.array([500, 500], np.int32)
    args = jax.device_put((random_weights(network.abstract, "tdm"), x, t, contexts[0]))
    options = compiler_options(sharding.make_mesh(), dtype)
    call = jax.jit(lambda params, *xs: network.bind(params)(*xs), compiler_options=options)
    return call, args


def their_unet(
    configs: Architecture, dtype: str = "float32", device: str = "cpu"
) -> Callable[[], np.ndarray]:
    """The same call of PyTorch."""
    params = random_weights(make_networks(configs).unet.abstract, "tdm")
    model = torch_model(
        UNet2DConditionModel, config_to_json(configs.unet), params, Part(UNET), device
    ).to(getattr(torch, dtype))
    x, contexts = inputs(configs, 2, configs.unet.sample_size)
    first, context = (a.to(device, model.dtype) for a in (nchw(x), torch.from_numpy(contexts[0])))
    t = torch.tensor([500, 500], device=device)

    def call() -> np.ndarray:
        with torch.inference_mode():
            return nhwc(model(first, t, context).sample)

    return call


def flax_unet(configs: Architecture) -> Callable[[], np.ndarray]:
    """The same call of diffusers' Flax, with other weights."""
    from diffusers import FlaxUNet2DConditionModel

    model = FlaxUNet2DConditionModel(
        sample_size=configs.unet.sample_size, cross_attention_dim=configs.unet.cross_attention_dim
    )
    shapes = jax.eval_shape(lambda: model.init_weights(jax.random.key(0)))
    weights = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, jnp.float32), shapes)
    (x, contexts), t = inputs(configs, 2, configs.unet.sample_size), np.array([500, 500], np.int32)
    args = np.moveaxis(x, -1, 1), t, contexts[0]
    call = jax.jit(lambda p, *xs: model.apply({"params": p}, *xs).sample)
    return lambda: np.asarray(call(weights, *args))


def unet_peer(name: str, dtype: str) -> Callable[[], np.ndarray]:
    """One call of the Stable Diffusion 1.5 UNet, batch 2, by one of the peers."""
    if name == "fd_jax":
        call, args = our_unet(Architecture(), dtype)
        return lambda: np.asarray(call(*args), np.float32)
    if name == "PyTorch diffusers":
        return their_unet(Architecture(), dtype)
    return flax_unet(Architecture())


def time_unet_peer(name: str, dtype: str, out: str) -> None:
    """Writes seconds per call, and what the call returns."""
    call = unet_peer(name, dtype)
    result, seconds = call(), []
    for _ in range(2):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    np.savez(out, seconds=seconds, result=result)


def compare_unet(peers: tuple[str, ...], dtype: str, rounds: int) -> None:
    """The peers in turn, each in a process of its own.

    Together they would hold the weights several times over, with three thread pools side by side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in peers:
                out = str(Path(folder, "peer.npz"))
                command = [sys.executable, __file__, "--unet-peer", name, dtype, out]
                subprocess.run(command, check=True)
                with np.load(out) as found:
                    seconds[name] += found["seconds"].tolist()
                    results[name] = found["result"]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    show(f"one Stable Diffusion 1.5 UNet call, batch 2, 64 x 64 latents, {dtype}", medians)
    error = relative(results["fd_jax"], results["PyTorch diffusers"])
    print(f"  relative L2 difference of fd_jax to PyTorch: {error:.1e}")


def draw(networks: Networks) -> dict[str, Params]:
    abstract = {"tdm": networks.unet, "sdm": networks.unet, "vae": networks.vae}
    return {name: random_weights(network.abstract, name) for name, network in abstract.items()}


def our_sampler(networks: Networks) -> Callable[..., jax.Array]:
    """From latents to images, as the pipeline does it: one scan, then one image after another."""

    def run(params: dict, x: jax.Array, contexts: jax.Array, guidance: jax.Array, steps: Steps):
        unets = (networks.unet.bind(params[name]) for name in ("tdm", "sdm"))
        tdm, sdm = (guided(as_eps(unet, ScheduleConfig()), guidance) for unet in unets)
        state, _ = sample(tdm, sdm, init_state(x), contexts, steps)
        vae = networks.vae.bind(params["vae"])
        return jax.lax.map(lambda row: vae.decode(row[None])[0], state.x)

    return jax.jit(run, compiler_options=compiler_options(sharding.make_mesh(), networks.dtype))


def their_sampler(
    configs: Architecture,
    params: dict[str, Params],
    steps: Steps,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    compiled: bool = False,
) -> Callable[..., np.ndarray]:
    """The same of PyTorch. Latents stay float32, as ours do, whatever the dtype of the models."""
    kind, is_gpu = getattr(torch, dtype), device == "cuda"
    times = steps.solver.t.tolist()
    table = {
        "times": times,
        "stages": steps.stage.tolist(),
        "levels": torch.from_numpy(alphas_cumprod(ScheduleConfig())[[*times, 0]]),
    }

    def load(name: str, cls: type, config: dict, part: Part) -> nn.Module:
        model = torch_model(cls, config, params[name], part, device).to(kind)
        return model.to(memory_format=torch.channels_last) if is_gpu else model

    def compile(call: Callable) -> Callable:
        return torch.compile(call, dynamic=False) if compiled else call

    def load_unet(name: str) -> Callable[..., types.SimpleNamespace]:
        call = compile(load(name, UNet2DConditionModel, config_to_json(configs.unet), Part(UNET)))

        def predict(x: Tensor, t: int, context: Tensor) -> types.SimpleNamespace:
            # As a number, each timestep would be compiled anew.
            t = torch.full(x.shape[:1], t, device=device)
            return types.SimpleNamespace(sample=call(x.to(kind), t, context).sample.float())

        return predict

    unets = load_unet("tdm"), load_unet("sdm")
    vae = load("vae", AutoencoderKL, config_to_json(configs.vae), Part(VAE))
    decode = compile(vae.decode)

    def run(x: np.ndarray, contexts: np.ndarray, guidance: float) -> np.ndarray:
        with torch.inference_mode():
            context = torch.from_numpy(contexts).to(device, kind)
            latents, _ = torch_sample(*unets, nchw(x).to(device), context, guidance, **table)
            scaled = (latents / vae.config.scaling_factor).to(kind)
            return nhwc(torch.cat([decode(row[None]).sample for row in scaled]))

    return run


def compare_sampling(configs: Architecture, batches: list[int], size: int, rounds: int) -> None:
    """Whole pictures, from noise and contexts."""
    networks, steps = make_networks(configs), make_steps(SamplerConfig(), ScheduleConfig())
    params = draw(networks)
    theirs, on_device = their_sampler(configs, params, steps), jax.device_put(params)
    print(f"\n{len(steps.stage)} steps: {steps.num_evaluations} UNet evaluations per picture")
    for batch in batches:
        x, contexts = inputs(configs, batch, size)
        before, run = len(compilations), our_sampler(networks)

        def ours(run=run, x=x, contexts=contexts) -> np.ndarray:
            return np.asarray(run(on_device, x, contexts, np.float32(5), steps))

        def pytorch(x=x, contexts=contexts) -> np.ndarray:
            return theirs(x, contexts, 5.0)

        begin = time.perf_counter()
        images = ours()
        first = time.perf_counter() - begin
        error = relative(images, pytorch())
        title = f"{batch} pictures of {size * configs.vae.downscale} px, float32"
        show(title, in_turn({"fd_jax": ours, "PyTorch diffusers": pytorch}, rounds))
        print(f"  relative L2 difference: {error:.1e}; first call {first:.1f} s")
        print(f"  compilations: {len(compilations) - before}", end="; ")
        before = len(compilations)
        ours()
        print(f"in a second call: {len(compilations) - before}")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument(
        "--bfloat16", action="store_true", help="only the UNet call, in bfloat16, with PyTorch"
    )
    parser.add_argument("--unet-peer", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unet_peer:
        return time_unet_peer(*arguments.unet_peer)
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}")
    if arguments.bfloat16:
        return compare_unet(UNET_PEERS[:2], "bfloat16", arguments.rounds)
    compare_unet(UNET_PEERS, "float32", arguments.rounds)
    compare_sampling(CONFIGS, [1, 4], 32, arguments.rounds)


if __name__ == "__main__":
    main()
