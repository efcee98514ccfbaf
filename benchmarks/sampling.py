"""Sampling against PyTorch and against diffusers' Flax, in one run.

    pip install -r benchmarks/requirements.txt
    PYTHONPATH=. python benchmarks/sampling.py          # on a CPU: a UNet call, small models
    PYTHONPATH=. python benchmarks/sampling.py --full   # on a GPU: full-size pictures, bfloat16

The peers are called in turn, round after round, so that whatever else the machine does hits all
of them; a ratio is that of the medians. Their outputs are compared too.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from benchmarks.peers import in_turn, nchw, nhwc, relative, show, torch_model, torch_sample
from fd_jax.checkpoints.torch_weights import UNET, VAE, Part
from fd_jax.config import Configs
from fd_jax.demo_checkpoints import CONFIGS, random_params
from fd_jax.networks import Networks, make_networks
from fd_jax.sampling.generate import sample
from fd_jax.sampling.solvers import init_state
from fd_jax.sampling.stages import SamplerConfig, make_steps
from fd_jax.schedule import ScheduleConfig, alphas_cumprod

UNET_PEERS = ("fd_jax", "PyTorch diffusers", "Flax diffusers")

compilations: list[float] = []


def count_compilations(event: str, seconds: float, **_) -> None:
    if "backend_compile" in event:
        compilations.append(seconds)


def inputs(configs: Configs, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents, and contexts of the negative prompt, the prompt, and the prompt with subjects."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size, size, 4), np.float32)
    shape = (3, batch, 77, configs.unet.cross_attention_dim)
    return x, rng.standard_normal(shape, np.float32)


def unet_peer(name: str) -> Callable[[], np.ndarray]:
    """One call of the Stable Diffusion 1.5 UNet, batch 2, float32, by one of the peers."""
    configs = Configs()
    (x, contexts), t = inputs(configs, 2, 64), np.array([500, 500], np.int32)
    context, first = contexts[0], np.moveaxis(x, -1, 1)
    if name == "Flax diffusers":
        from diffusers import FlaxUNet2DConditionModel

        model = FlaxUNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        shapes = jax.eval_shape(lambda: model.init_weights(jax.random.key(0)))
        weights = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, jnp.float32), shapes)
        call = jax.jit(lambda p, *xs: model.apply({"params": p}, *xs).sample)
        return lambda: np.asarray(call(weights, first, t, context))
    network = make_networks(configs).unet
    params = random_params(network.abstract, 0, "unet")
    if name == "fd_jax":
        on_device = jax.device_put(params)
        call = jax.jit(lambda params, *xs: network.bind(params)(*xs))
        return lambda: np.asarray(call(on_device, x, t, context))
    theirs = torch_model(UNet2DConditionModel, configs.unet.to_json(), params, Part(UNET))
    del params

    def pytorch() -> np.ndarray:
        with torch.inference_mode():
            eps = theirs(nchw(x), torch.from_numpy(t), torch.from_numpy(context)).sample
        return np.moveaxis(eps.numpy(), 1, -1)

    return pytorch


def time_unet_peer(name: str, out: str) -> None:
    """Writes seconds per call, and what the call returns."""
    call = unet_peer(name)
    result, seconds = call(), []
    for _ in range(2):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    np.savez(out, seconds=seconds, result=result)


def compare_unet(rounds: int) -> None:
    """The peers in turn, each in a process of its own.

    Together they would hold the weights several times over, with three thread pools side by side.
    """
    seconds: dict[str, list[float]] = {name: [] for name in UNET_PEERS}
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in UNET_PEERS:
                out = str(Path(folder, "peer.npz"))
                command = [sys.executable, __file__, "--unet-peer", name, out]
                subprocess.run(command, check=True)
                with np.load(out) as found:
                    seconds[name] += found["seconds"].tolist()
                    results[name] = found["result"]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    show("one Stable Diffusion 1.5 UNet call, batch 2, 64 x 64 latents, float32", medians)
    error = relative(results["fd_jax"], results["PyTorch diffusers"])
    print(f"  relative L2 difference of fd_jax to PyTorch: {error:.1e}")


def our_sampler(networks: Networks, params: dict, x, contexts, guidance: float, steps):
    """Latents to images, as the pipeline does it: one scan, then one image after another."""

    @jax.jit
    def run(params, x, contexts, guidance, steps):
        tdm, sdm = networks.unet.bind(params["tdm"]), networks.unet.bind(params["sdm"])
        state, _ = sample(tdm, sdm, init_state(x), contexts, guidance, steps)
        vae = networks.vae.bind(params["vae"])
        return jax.lax.map(lambda row: vae.decode(row[None])[0], state.x)

    on_device = jax.device_put((params, x, contexts))
    return lambda: np.asarray(run(*on_device, np.float32(guidance), steps))


def compare_sampling(configs: Configs, batches: list[int], size: int, rounds: int, *, full: bool):
    """Whole pictures, from noise and contexts."""
    dtype, device = ("bfloat16", "cuda") if full else ("float32", "cpu")
    networks = make_networks(configs, dtype=dtype)
    seeds = {"tdm": networks.unet, "sdm": networks.unet, "vae": networks.vae}
    params = {key: random_params(network.abstract, 0, key) for key, network in seeds.items()}
    models = {
        key: torch_model(*kind, params[key], part).to(device, torch.float16 if full else None)
        for key, kind, part in (
            ("tdm", (UNet2DConditionModel, configs.unet.to_json()), Part(UNET)),
            ("sdm", (UNet2DConditionModel, configs.unet.to_json()), Part(UNET)),
            ("vae", (AutoencoderKL, configs.vae.to_json()), Part(VAE)),
        )
    }
    if full:
        kernels = {"bfloat16": jnp.bfloat16}[dtype]
        params = jax.tree.map(lambda p: p.astype(kernels) if p.ndim > 1 else p, params)
        for key in ("tdm", "sdm"):
            models[key] = torch.compile(models[key].to(memory_format=torch.channels_last))
    steps = make_steps(SamplerConfig(), ScheduleConfig())
    times = steps.solver.t.tolist()
    table = {
        "times": times,
        "stages": steps.stage.tolist(),
        "levels": torch.from_numpy(alphas_cumprod(ScheduleConfig())[[*times, 0]]),
    }
    print(f"\n{len(steps.stage)} steps: {steps.num_evaluations} UNet evaluations per picture")
    for batch in batches:
        x, contexts = inputs(configs, batch, size)
        before = len(compilations)
        begin = time.perf_counter()
        ours = our_sampler(networks, params, x, contexts, 5.0, steps)
        images = ours()
        first = time.perf_counter() - begin
        half = {"device": device, "dtype": torch.float16} if full else {}

        def pytorch(x=x, contexts=contexts, half=half) -> np.ndarray:
            with torch.inference_mode():
                start, context = nchw(x).to(**half), torch.from_numpy(contexts).to(**half)
                unets, vae = (models["tdm"], models["sdm"]), models["vae"]
                latents, _ = torch_sample(*unets, start, context, 5.0, **table)
                scaled = latents / vae.config.scaling_factor
                return nhwc(torch.cat([vae.decode(row[None]).sample for row in scaled]))

        error = relative(images, pytorch())
        title = f"{batch} pictures of {size * configs.vae.downscale} px, {dtype}"
        show(title, in_turn({"fd_jax": ours, "PyTorch diffusers": pytorch}, rounds))
        print(f"  relative L2 difference: {error:.1e}; first call {first:.1f} s")
        print(f"  compilations: {len(compilations) - before}", end="; ")
        before = len(compilations)
        ours()
        print(f"in a second call: {len(compilations) - before}")
        if full:
            peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
            theirs = torch.cuda.max_memory_allocated()
            print(f"  peak memory: fd_jax {peak / 2**30:.1f} GiB, PyTorch {theirs / 2**30:.1f} GiB")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--full", action="store_true", help="full-size pictures, on a GPU")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--unet-peer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.unet_peer:
        return time_unet_peer(*arguments.unet_peer)
    jax.monitoring.register_event_duration_secs_listener(count_compilations)
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__}")
    if arguments.full:
        if jax.default_backend() != "gpu" or not torch.cuda.is_available():
            parser.error("--full needs a GPU that both JAX and PyTorch see")
        compare_sampling(Configs(), [1, 4, 16], 64, arguments.rounds, full=True)
    else:
        compare_unet(arguments.rounds)
        compare_sampling(CONFIGS, [1, 4], 32, arguments.rounds, full=False)


if __name__ == "__main__":
    main()
