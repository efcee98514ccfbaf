"""The README's first command with default settings, `python sample.py --trace`, against PyTorch.

    pip install -r benchmarks/requirements.txt
    python benchmarks/first_command.py          # on the CPU

Each run is a process of its own, timed from its start to its exit; its peak memory and CPU time are
what the kernel reports of that process (wait4). In each round fd_jax runs without any compiled
program, then PyTorch, then fd_jax again with what it compiled, then PyTorch again.

PyTorch samples with the models of diffusers and transformers, from the same files, in the same
batches and with as many UNet evaluations, and begins with fd_jax's noise, so that the pictures can
be compared. It reads prompts and photographs, draws and writes with fd_jax's code, which needs no
JAX: both write the same files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

# JAX and PyTorch are imported in the tasks below, not here: until its own program begins, a new
# process has the memory of the one that starts it, and its peak counts that.

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "fd_jax" / "assets" / "demo"
PROMPTS = MODELS / "prompts.jsonl"
BATCH_SIZE = 4  # sample.py's default
COLUMNS = 8  # of a trace
SHEET = "contact_sheet.png"
STAGES = ("scene", "fusion", "subject")
COLD, WARM, PEER = "fd_jax, nothing compiled", "fd_jax again", "PyTorch"


class Usage(NamedTuple):
    """What a process took."""

    seconds: float
    cpu_seconds: float
    memory: float  # GiB, at its peak


def measure(command: list[str], environment: dict[str, str]) -> Usage:
    """Runs a process to its end. Exits with its last words if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    with tempfile.TemporaryFile() as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{command} failed: {said.read().decode(errors='replace')[-2000:]}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)


def first_command(models: Path, out: Path) -> list[str]:
    command = [sys.executable, "sample.py", "--trace", "--output", str(out)]
    if models != MODELS:
        options = {"base": "base", "image-encoder": "clip"}
        options |= {name: f"{name}.safetensors" for name in ("sdm", "tdm")}
        command += [part for name in options for part in (f"--{name}", str(models / options[name]))]
        command += ["--prompt-file", str(PROMPTS)]
    return command


def write_plan(models: Path, out: Path) -> None:
    """Writes what both do alike: the noise of each picture, the steps, the guidance."""
    import jax

    from fd_jax.checkpoints.merge import merge
    from fd_jax.checkpoints.weights import open_weights
    from fd_jax.inference.prompt_file import read_prompt_file
    from fd_jax.sampling.generate import initial_noise
    from fd_jax.sampling.stages import SamplerConfig, make_steps
    from fd_jax.schedule import alphas_cumprod, final_alpha_cumprod

    architecture, schedule = merge([open_weights(models)])
    sampler = SamplerConfig()
    steps = make_steps(sampler, schedule)
    requests, _ = read_prompt_file(PROMPTS)
    # Picture 0 of the seed of each line.
    keys = [jax.random.fold_in(jax.random.key(request.seed), 0) for request in requests]
    side = architecture.unet.sample_size
    np.savez(
        out,
        noise=initial_noise(jax.numpy.stack(keys), side, side),
        times=steps.solver.t,
        stages=steps.stage,
        levels=np.append(alphas_cumprod(schedule)[steps.solver.t], final_alpha_cumprod(schedule)),
        prediction_type=schedule.prediction_type,
        guidance=sampler.guidance_scale,
        subject_resolution=architecture.image_encoder.image_size,
        evaluations=steps.num_evaluations,
    )


def sample_with_pytorch(models: Path, plan: Path, out: Path) -> None:
    """Makes the pictures, traces and contact sheet that the first command makes."""
    # fd_jax's own first module imports JAX. Without it, the modules here need none.
    package = types.ModuleType("fd_jax")
    package.__path__ = [str(ROOT / "fd_jax")]
    sys.modules["fd_jax"] = package

    import torch

    from benchmarks.peers import nchw, read_bundle, torch_sample
    from fd_jax.assets import TOKENIZER
    from fd_jax.data.captions import load_tokenizer, strip_markers
    from fd_jax.data.photographs import load_photograph
    from fd_jax.images.png import write_png
    from fd_jax.images.sheets import contact_sheet
    from fd_jax.images.trace_sheet import trace_sheet
    from fd_jax.inference.inputs import make_inputs
    from fd_jax.inference.prompt_file import read_prompt_file

    with np.load(plan) as found:
        noise, times, stages = nchw(found["noise"]), found["times"], found["stages"]
        table = {
            "times": times.tolist(),
            "stages": stages.tolist(),
            "levels": torch.from_numpy(found["levels"]),
            "prediction_type": str(found["prediction_type"]),
        }
        guidance, side, evaluations = (
            found[name].item() for name in ("guidance", "subject_resolution", "evaluations")
        )
    shown = np.unique(np.linspace(0, len(times) - 1, COLUMNS).round().astype(int)).tolist()
    headings = [f"{i} {STAGES[stages[i]]}" for i in shown]

    out.mkdir()
    requests, _ = read_prompt_file(PROMPTS, traces=True)
    tokenizer, bundle = load_tokenizer(TOKENIZER), read_bundle(models)
    evaluated = []
    for unet in (bundle.tdm, bundle.sdm):
        unet.register_forward_hook(lambda model, inputs, output: evaluated.append(len(inputs[0])))
    pictures, photographs = [], []
    for first in range(0, len(requests), BATCH_SIZE):
        batch = requests[first : first + BATCH_SIZE]
        references = [
            [load_photograph(person[0]) for person in request.references] for request in batch
        ]
        inputs = make_inputs(
            *(tokenizer, [request.prompt for request in batch], references),
            [request.negative_prompt for request in batch],
            subject_resolution=side,
        )
        with torch.inference_mode():
            latents, seen = torch_sample(
                *(bundle.tdm, bundle.sdm, noise[first : first + BATCH_SIZE]),
                *(bundle.contexts(inputs), guidance),
                **table,
                trace=True,
            )
            made = to_uint8(bundle.decode(latents))
            predicted = [to_uint8(bundle.decode(seen.x0[shown, i])) for i in range(len(batch))]
        for i, request in enumerate(batch):
            settings = {"prompt": request.prompt, "seed": request.seed}
            maps = (x[shown, i, 0].numpy() for x in seen[:3])
            drawn = trace_sheet(predicted[i], *maps, steps=headings, title=request.prompt)
            for name, image in ((request.output, made[i]), (request.trace, drawn)):
                write_png(out / name, image, settings, overwrite=False)
        pictures += list(made)
        photographs += references
    labels = [strip_markers(request.prompt) for request in requests]
    sheet = contact_sheet(pictures, labels, references=photographs)
    write_png(out / SHEET, sheet, {}, overwrite=False)

    if "jax" in sys.modules:
        sys.exit("PyTorch's process has imported JAX, whose time and memory would count as its own")
    if sum(evaluated) != evaluations * len(requests):
        sys.exit(f"{sum(evaluated)} UNet evaluations, expected {evaluations} a picture")


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images in 0..1 as 256 levels."""
    return np.round(images * 255).astype(np.uint8)


def compare(ours: Path, theirs: Path) -> None:
    """Prints how far the pictures are apart. Exits if the files are not the same."""
    names = sorted(path.name for path in ours.glob("*.png"))
    if names != sorted(path.name for path in theirs.glob("*.png")):
        sys.exit(f"{ours} and {theirs} hold other files")
    pictures = []
    for name in names:
        if "_trace" not in name and name != SHEET:
            a, b = (np.asarray(Image.open(folder / name), int) for folder in (ours, theirs))
            pictures.append(np.abs(a - b))
    pixels = np.concatenate([apart.max(axis=-1).ravel() for apart in pictures])
    print(
        f"  {len(pictures)} pictures: largest difference {pixels.max()} grey levels; "
        f"{100 * np.mean(pixels > 0):.2f} % of the pixels differ, "
        f"{100 * np.mean(pixels > 1):.2f} % by more than one"
    )


def show(found: dict[str, list[Usage]]) -> None:
    """Prints medians, and in brackets the seconds of each run."""
    medians = {
        name: Usage(*(statistics.median(column) for column in zip(*runs, strict=True)))
        for name, runs in found.items()
    }
    print(f"\n  {'':26} {'wall time':>10} {'CPU time':>10} {'peak memory':>14}")
    for name, usage in medians.items():
        runs = ", ".join(f"{run.seconds:.1f}" for run in found[name])
        print(
            f"  {name:26} {usage.seconds:8.1f} s {usage.cpu_seconds:8.1f} s "
            f"{usage.memory:10.2f} GiB    ({runs})"
        )
    peer = medians[PEER].seconds
    for name in (COLD, WARM):
        print(f"  PyTorch takes {peer / medians[name].seconds:.2f} x the time of: {name}")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=int, default=2, help="rounds (default: 2)")
    parser.add_argument(
        "--models", type=Path, default=MODELS, help="another bundle (default: that of the package)"
    )
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        name, *paths = arguments.task
        return {"plan": write_plan, "pytorch": sample_with_pytorch}[name](*map(Path, paths))
    packages = ("jax", "flax", "torch", "diffusers", "transformers")
    print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
    models = str(arguments.models.absolute())
    task = [sys.executable, __file__, "--task"]
    without_flax = {"USE_FLAX": "0"}  # or diffusers would import JAX
    found: dict[str, list[Usage]] = {name: [] for name in (COLD, WARM, PEER)}
    with tempfile.TemporaryDirectory() as folder:
        plan, outs = str(Path(folder, "plan.npz")), []
        # After these, the files of the packages have been read, whoever comes first.
        measure([*task, "plan", models, plan], {})
        measure([sys.executable, "-c", "import benchmarks.peers"], without_flax)
        for i in range(arguments.rounds):
            cache = {"JAX_COMPILATION_CACHE_DIR": str(Path(folder, f"cache{i}"))}
            for name in (COLD, PEER, WARM, PEER):
                outs.append(Path(folder, f"out{len(outs)}"))
                if name == PEER:
                    usage = measure([*task, "pytorch", models, plan, str(outs[-1])], without_flax)
                else:
                    usage = measure(first_command(Path(models), outs[-1]), cache)
                found[name].append(usage)
                print(f"  round {i + 1}, {name}: {usage.seconds:.1f} s", flush=True)
        compare(*outs[:2])
    show(found)


if __name__ == "__main__":
    main()
