"""fd_jax against PyTorch on one H100 or H200, in ten minutes.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpu.py            # full size, bfloat16
    python benchmarks/gpu.py --small    # the same of small models in float32, on any machine

In this order: the peak of a matrix product; a call of the UNet, compared in float32 and bfloat16;
whole pictures, one batch size with a profile; steps of training. Each peer has a process of its own
for each of these, one after another, and after each `results.json` and `report.md` are written.
What does not fit into --minutes is left out, and named. Exits with 1 if the UNets are too far
apart, or could not be compared.
"""

import argparse
import importlib.util
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu_report import BOUNDS, FAMILIES, OURS, PEERS, THEIRS, family, report

# All other packages are imported once they are known to be there, and most of them in the processes
# of the tasks alone: this one must not hold memory of the GPU.

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "flax", "optax", "torch", "diffusers", "transformers", "safetensors")

# The most telling first, as time may end. Batches of training are halved where they do not fit.
FULL: dict[str, dict[str, Any]] = {
    "unet": {},
    "sample-16": {"batch": 16},
    "sample-4": {"batch": 4, "profiled": True},
    "tdm-encoded": {"encoded": True, "batch": 32},
    "tdm": {"batch": 16},
    "sdm": {"batch": 16},
    "sample-1": {"batch": 1},
    "sample-64": {"batch": 64},
    "tdm-blocks": {"remat": "blocks", "batch": 32},
    "sdm-blocks": {"remat": "blocks", "batch": 32},
}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {},
    "sample-2": {"batch": 2},
    "sample-1": {"batch": 1, "profiled": True},
    "tdm-encoded": {"encoded": True, "batch": 2},
    "sdm-blocks": {"remat": "blocks", "batch": 2},
}
# Seconds that a process of full size needs, compiling included: guesses. With fewer left it is not
# begun; after three times as many it is ended.
NEEDS = {"peak": 30, "prepare": 60, "unet": 60, "sample": 90, "tdm": 90, "sdm": 90}

TOP = 15  # kernels that are named


def measure_peak(side: int, *, only_gpu: bool) -> dict[str, Any]:
    """Products of bfloat16 matrices, one after another in one program; and what JAX runs on."""
    import jax

    [device, *_], count = jax.devices(), 50
    found = {"platform": device.platform, "device": device.device_kind}
    if only_gpu and device.platform != "gpu":
        return found
    x, w = (jax.random.normal(jax.random.key(i), (side, side), "bfloat16") for i in range(2))
    w = w / side**0.5  # so that products stay near one
    call = jax.jit(lambda x, w: jax.lax.fori_loop(0, count, lambda _, y: y @ w, x))
    jax.block_until_ready(call(x, w))
    seconds = timed(lambda: jax.block_until_ready(call(x, w)))
    return found | {"side": side, "flops_per_second": 2 * side**3 * count / min(seconds)}


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of two to five calls, fewer where they take long."""
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds) < 10):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


def prepare(*, small: bool) -> dict[str, float]:
    """Draws the weights, for all others to read. Returns FLOPs of a picture and of examples."""
    import jax

    from benchmarks.peers import random_weights
    from benchmarks.steps import Task, Trial
    from fd_jax.networks import make_networks
    from fd_jax.sampling.stages import SamplerConfig, make_steps
    from fd_jax.schedule import ScheduleConfig
    from fd_jax.training.flops import count_flops

    config, networks = sizes(small).unet, make_networks(sizes(small), attention="plain")
    parts = ("vae", "text_encoder", "image_encoder", "subject_fusion")
    named = {"tdm": "unet", "sdm": "unet"} | {part: part for part in parts}
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(random_weights, getattr(networks, part).abstract, name)
            for name, part in named.items()
        ]
        x, t, context = (
            jax.ShapeDtypeStruct((1, *shape), dtype)
            for shape, dtype in (
                ((config.sample_size, config.sample_size, 4), "float32"),
                ((), "int32"),
                ((77, config.cross_attention_dim), "float32"),
            )
        )
        unet, vae = networks.unet, networks.vae
        call = count_flops(lambda p, *xs: unet.bind(p)(*xs), unet.abstract, x, t, context)
        decode = count_flops(lambda p, x: vae.bind(p).decode(x), vae.abstract, x)
        evaluations = make_steps(SamplerConfig(), ScheduleConfig()).num_evaluations
        flops = {"sample": evaluations * call + decode}
        for kind in ("tdm", "sdm"):
            flops[kind] = Task(Trial(OURS, kind, 1, full=not small)).flops()
        flops["tdm-encoded"] = Task(Trial(OURS, "tdm", 1, full=not small, encoded=True)).flops()
        for each in waiting:
            each.result()
    return flops


def call_unet(peer: str, *, small: bool, out: str) -> dict[str, Any]:
    """The UNet in each dtype: fd_jax's process writes its results, the other compares them."""
    import jax
    import numpy as np
    import torch

    from benchmarks.peers import relative
    from benchmarks.sampling import our_unet, their_unet
    from benchmarks.steps import DEVICE

    if peer == THEIRS:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        theirs = {dtype: their_unet(sizes(small), dtype, DEVICE)() for dtype in BOUNDS}
        expected, found = theirs["float32"], {}
        with np.load(out) as ours:
            for name, results in ((OURS, ours), (THEIRS, theirs)):
                found |= {f"{name}, {x}": relative(results[x], expected) for x in BOUNDS}
        return {"differences": found}
    results, calls = {}, {}
    for dtype in BOUNDS:
        with jax.default_matmul_precision("float32" if dtype == "float32" else None):
            function, args = our_unet(sizes(small), dtype)
            program = function.lower(*args).compile()
        results[dtype] = np.asarray(program(*args))
        calls[dtype] = cudnn_attention(program)
    np.savez(out, **results)
    return {"cudnn_attention": calls}


def cudnn_attention(program: Any) -> int:
    """How many times a compiled program calls cuDNN's attention."""
    return len(re.findall(r'custom_call_target="__cudnn\$fmha', program.as_text()))


def sample(
    peer: str, batch: int, *, small: bool, compiled: bool, profiled: bool = False, out: str
) -> dict[str, Any]:
    """Makes pictures: fd_jax's process writes those of the first call, the other compares them."""
    import jax
    import numpy as np
    import torch

    from benchmarks.peers import relative
    from benchmarks.sampling import draw, inputs, our_sampler, their_sampler
    from benchmarks.steps import DEVICE
    from fd_jax import params
    from fd_jax.networks import make_networks
    from fd_jax.sampling.stages import SamplerConfig, make_steps
    from fd_jax.schedule import ScheduleConfig

    configs, dtype = sizes(small), "float32" if small else "bfloat16"
    networks = make_networks(configs, dtype=dtype)
    steps, weights = make_steps(SamplerConfig(), ScheduleConfig()), draw(networks)
    x, contexts = inputs(configs, batch, configs.unet.sample_size)
    found: dict[str, Any] = {"batch": batch}
    begin = time.perf_counter()
    if peer == OURS:
        cast = params.nested(params.cast(params.flat(weights), networks.dtype))
        args = (*jax.device_put((cast, x, contexts)), np.float32(5), steps)
        with jax.default_matmul_precision("float32" if small else None):
            program = our_sampler(networks).lower(*args).compile()
        memory = program.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes
        found["program_memory"] = held + memory.temp_size_in_bytes
        found["cudnn_attention"] = cudnn_attention(program)

        def call() -> np.ndarray:
            return np.asarray(program(*args))
    else:
        options = {"dtype": dtype, "device": DEVICE, "compiled": compiled}
        call = partial(their_sampler(configs, weights, steps, **options), x, contexts, 5.0)
        found["compiled"] = compiled
    images = call()
    found["first"] = time.perf_counter() - begin
    if peer == THEIRS and DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()  # compiling takes memory, too
    found["seconds"] = timed(call)
    if peer == THEIRS and DEVICE == "cuda":
        found["memory"] = torch.cuda.max_memory_allocated()
    elif (device := jax.devices()[0]).platform == "gpu":
        found["memory"] = device.memory_stats()["peak_bytes_in_use"]
    if peer == OURS:
        np.savez(out, images=images)
        if profiled:
            found["profile"] = profile(call)
    elif Path(out).exists():
        found["difference"] = relative(np.load(out)["images"], images)
    return found


def profile(call: Callable[[], object]) -> dict[str, Any]:
    """Where the time of a call goes: seconds on the device by family and by kernel."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            begin = time.perf_counter()
            call()
            seconds = time.perf_counter() - begin
        [path] = Path(folder).rglob("*.xplane.pb")
        kernels = kernel_seconds(jax.profiler.ProfileData.from_file(str(path)))
    families = dict.fromkeys(FAMILIES, 0.0)
    for name, (total, _) in kernels.items():
        families[family(name)] += total
    top = sorted(kernels.items(), key=lambda item: -item[1][0])[:TOP]
    return {
        "seconds": seconds,
        "device_seconds": sum(families.values()),
        "families": families,
        "top": [[name, *numbers] for name, numbers in top],
    }


def kernel_seconds(data: Any) -> dict[str, tuple[float, int]]:
    """By name of the kernel seconds and calls: those of streams, or on a CPU of operations."""
    seconds, calls = Counter(), Counter()
    for plane in data.planes:
        for line in plane.lines:
            if plane.name.startswith("/device:GPU"):
                events = line.events if line.name.startswith("Stream") else ()
            else:
                events = operations(line.events)
            for event in events:
                seconds[event.name] += event.duration_ns / 1e9
                calls[event.name] += 1
    return {name: (seconds[name], calls[name]) for name in seconds}


def operations(events: Iterable[Any]) -> Iterable[Any]:
    """Those of a CPU's events that are operations, and hold no others."""
    for event in events:
        holds_others = re.match("while|call|cond", event.name)
        if not holds_others and any(name == "hlo_op" for name, _ in event.stats):
            yield event


def train(
    kind: str, peer: str, batch: int, *, small: bool, compiled: bool, out: str, **options: Any
) -> dict[str, Any]:
    """Takes steps of training. What they are given is made by `benchmarks.steps.random_batch`."""
    from benchmarks.steps import Trial, run

    trial = Trial(peer, kind, batch, full=not small, compiled=compiled, **options)
    return {"batch": batch, "compiled": compiled} | run(trial)


def sizes(small: bool) -> Any:
    from fd_jax.architecture import Architecture
    from tests.helpers.untrained import CONFIGS

    return CONFIGS if small else Architecture()


TASKS = {
    "peak": measure_peak,
    "prepare": prepare,
    "unet": call_unet,
    "sample": sample,
    "tdm": partial(train, "tdm"),
    "sdm": partial(train, "sdm"),
}


class Run:
    """What was found, and the time that is left.

    Args:
        output: Folder of the results.
        minutes: For all of it.
        small: Whether models are small.
        folder: For weights, compiled programs and results to compare.
    """

    def __init__(self, output: Path, minutes: float, small: bool, folder: Path):
        self.output, self.folder, self.small = output, folder, small
        self.begin, self.end = time.monotonic(), time.monotonic() + 60 * minutes
        packages = {name: metadata.version(name) for name in PACKAGES}
        self.found: dict[str, Any] = {"small": small, "versions": packages}
        self.found |= {"parts": {}, "missing": []}
        (folder / "weights").mkdir()
        output.mkdir(parents=True, exist_ok=True)

    def compare(self, name: str, options: dict[str, Any]) -> None:
        """Does a part with both peers, one after the other."""
        options = options | {"small": self.small, "out": str(self.folder / f"{name}.npz")}
        for peer in PEERS:
            if name != "unet":
                options["compiled"] = peer == THEIRS and not self.small
            if found := self.do(name, peer=peer, **options):
                self.found["parts"].setdefault(name, {})[peer] = found
                self.write()
                # Should the report not come to be printed.
                left_out = ("metrics", "profile", "cpu_seconds")
                print({key: x for key, x in found.items() if key not in left_out}, flush=True)

    def do(self, name: str, **options: Any) -> Any:
        """Returns what the process of a task does, or None if it is left out or fails."""
        from benchmarks.peers import TaskError, in_process

        task, peer = name.split("-")[0], options.get("peer", OURS)
        title = f"{name}, {peer}" if "peer" in options else name
        title += f", batch {options['batch']}" if "batch" in options else ""
        need, left = 5 if self.small else NEEDS[task], self.end - time.monotonic()
        if left < need:
            return self._miss(title, f"left out: {left:.0f} s remain, some {need} s are needed")
        print(f"{time.monotonic() - self.begin:4.0f} s: {title}", flush=True)
        limit = min(left, 3 * NEEDS[task])
        job = {"task": task, **options}
        try:
            return in_process(__file__, job, self._environment(task, peer), timeout=limit)
        except TaskError as error:
            self._miss(title, str(error))
            if error.out_of_memory and task != "sample" and options.get("batch", 1) > 1:
                return self.do(name, **options | {"batch": options["batch"] // 2})
            if options.get("compiled") and not (error.out_of_memory or error.timed_out):
                return self.do(name, **options | {"compiled": False})
            return None

    def _environment(self, task: str, peer: str) -> dict[str, str]:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "xla"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "BENCHMARK_WEIGHTS": str(self.folder / "weights"),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9",
            "OMP_WAIT_POLICY": "PASSIVE",
            "USE_FLAX": "0",
        }
        # PyTorch gets its weights and draws from JAX, which is to leave it the GPU.
        if peer == THEIRS or task == "prepare":
            environment["JAX_PLATFORMS"] = "cpu"
        return environment

    def _miss(self, title: str, why: str) -> None:
        print(f"  {title}: {why}", flush=True)
        self.found["missing"].append(f"{title}: {why}")
        self.write()

    def write(self) -> None:
        """Writes results and report as far as they are there."""
        self.found["minutes"] = (time.monotonic() - self.begin) / 60
        (self.output / "results.json").write_text(json.dumps(self.found, indent=2))
        (self.output / "report.md").write_text(report(self.found))

    def check(self) -> str | None:
        """Why the UNets do not agree, or None if they do."""
        found = self.found["parts"].get("unet", {}).get(THEIRS)
        if found is None:
            return "the UNets were not compared"
        for dtype, bound in BOUNDS.items():
            value = found["differences"][f"{OURS}, {dtype}"]
            if not value < bound:
                return f"the UNet in {dtype} is {value:.1e} from PyTorch's, expected {bound:.0e}"
        return None


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--small", action="store_true", help="small models, on any machine")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all (default: 9.5)")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs" / "gpu", help="folder")
    parser.add_argument("--parts", nargs="+", help=f"some of {', '.join(FULL)} (default: all)")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        sys.exit(f"missing: {', '.join(missing)}; pip install -r benchmarks/requirements.txt")

    if arguments.task:
        import jax

        # JAX finds its libraries first: PyTorch may bring others of the same names.
        jax.devices()
        from benchmarks.peers import do_task

        return do_task(lambda job: TASKS[job.pop("task")](**job), *arguments.task)

    import torch

    small = arguments.small
    parts = SMALL if small else FULL
    chosen = arguments.parts or list(parts)
    if strange := [name for name in chosen if name not in parts]:
        parser.error(f"--parts has {strange}, expected some of {list(parts)}")
    # Or a process that is still at work would keep the GPU.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(arguments.output, arguments.minutes, small, Path(folder))
        peak = run.do("peak", side=256 if small else 8192, only_gpu=not small)
        seen = {"JAX": peak and peak["platform"] == "gpu", "PyTorch": torch.cuda.is_available()}
        if not small and not all(seen.values()):
            sys.exit(f"expected a GPU that both see, found {seen}; --small runs without one")
        flops = run.do("prepare", small=small)
        if not peak or not flops:
            sys.exit("there is nothing to compare with")
        run.found |= {"peak": peak, "prepare": flops}
        for name in chosen:
            run.compare(name, parts[name])
        run.write()
        print(f"\n{report(run.found)}\nwritten to {arguments.output}")
        if "unet" in chosen and (why := run.check()):
            sys.exit(f"error: {why}")


if __name__ == "__main__":
    main()
