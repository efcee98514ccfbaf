"""Training against PyTorch, in one run: steps, and the pipeline of the data.

    pip install -r benchmarks/requirements.txt
    PYTHONPATH=. JAX_PLATFORMS=cpu python benchmarks/training.py   # on a CPU: a small model

Steps are taken in processes of their own, a peer at a time, round after round; a ratio is that of
the medians. The peers' losses and examples are compared too. CPU time counts what a process
computes, whatever else the machine does.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import torch_data
from benchmarks.peers import ROOT, TaskError, do_task, in_process
from benchmarks.steps import PEERS, Trial, run
from fd_jax.assets import TOKENIZER
from fd_jax.conditioning.clip_vision import MEAN, STD
from fd_jax.data.captions import load_tokenizer
from fd_jax.data.config import DataConfig
from fd_jax.data.examples import make_example
from fd_jax.data.ffhq.source import open_source
from fd_jax.training.metrics import FILE_NAME, read_metrics

TOLERANCE = 1e-3  # of the first step's loss in float32, relative
PHOTOGRAPHS = 64


def take(trial: Trial, cache: str, cpus: set[int]) -> dict[str, Any]:
    """Takes the steps of a trial in a process of its own."""
    # Beside other processes, PyTorch's threads that wait busily take a hundred times as long.
    environment = {"JAX_COMPILATION_CACHE_DIR": cache, "OMP_WAIT_POLICY": "PASSIVE"}
    try:
        return in_process(__file__, dataclasses.asdict(trial), environment, cpus=cpus)
    except TaskError as error:
        sys.exit(f"the steps of {trial.peer} failed: {error}")


def compare_steps(rounds: int) -> None:
    """Steps of a small SDM, on one CPU and on all of them."""
    everything = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as cache:
        for cpus in ({max(everything)}, everything):
            found: dict[str, list[dict]] = {peer: [] for peer in PEERS}
            for _ in range(rounds):
                for peer in PEERS:
                    found[peer].append(take(Trial(peer, "sdm", 8), cache, cpus))
            print(f"\nsmall SDM, localization loss, 64 px, batch 8, float32, CPUs: {len(cpus)}")
            show_steps(found)


def show_steps(found: dict[str, list[dict]]) -> None:
    """Prints medians over all rounds."""

    def median(peer: str, key: str) -> float:
        return statistics.median(value for row in found[peer] for value in row[key])

    for peer, rows in found.items():
        wall, cpu = median(peer, "seconds"), median(peer, "cpu_seconds")
        ratios = wall / median(PEERS[0], "seconds"), cpu / median(PEERS[0], "cpu_seconds")
        first, memory = rows[0]["first"], rows[0]["memory"] / 2**30
        print(
            f"  {peer:18} {1 / wall:5.2f} steps/s, {ratios[0]:.2f} x the time of fd_jax; "
            f"{cpu:.3f} s of CPU time a step, {ratios[1]:.2f} x"
        )
        print(f"  {'':18} first step {first:.1f} s, peak memory {memory:.1f} GiB")
    show_differences(*(found[peer][0]["metrics"] for peer in PEERS))


def show_differences(ours: list[dict], theirs: list[dict]) -> None:
    """Prints how far metrics of the first and the last step are apart. Exits if losses differ."""
    for i in (0, -1):
        error = {name: abs(ours[i][name] / theirs[i][name] - 1) for name in theirs[i]}
        shown = ", ".join(f"{name} {value:.1e}" for name, value in error.items())
        print(f"  relative difference in step {i % len(ours) + 1}: {shown}")
        if i == 0 and error["loss"] > TOLERANCE:
            sys.exit(f"the losses differ: {ours[0]} of fd_jax, {theirs[0]} of PyTorch")


def compare_examples(root: Path, ids: list[str], rounds: int) -> None:
    """Makes examples of all photographs, by one peer after the other, in one thread."""
    torch.set_num_threads(1)
    tokenizer, source = load_tokenizer(TOKENIZER), open_source([root], "train")
    rng = np.random.default_rng(0)
    print(f"\n{len(ids)} photographs of 1024 px to examples of 512 px with crops of 224 px")
    for augment in (True, False):
        config = DataConfig(caption_drop_prob=0.0, subject_keep_prob=1.0, augment=augment)
        dataset = torch_data.Dataset(root, config, tokenizer)
        if augment:
            compare_outputs(source, ids, config, tokenizer, dataset)

        def ours(config: DataConfig = config) -> None:
            for i in range(len(ids)):
                make_example(source[i], config, tokenizer, rng, training=True)

        def theirs(dataset: torch_data.Dataset = dataset) -> None:
            for name in ids:
                dataset(name, training=True)

        makers = {"fd_jax": ours, "torchvision": theirs}
        seconds: dict[str, list[float]] = {peer: [] for peer in makers}
        for _ in range(rounds):
            for peer, make in makers.items():
                begin = time.process_time()
                make()
                seconds[peer].append(time.process_time() - begin)
        medians = {peer: statistics.median(times) for peer, times in seconds.items()}
        for peer, value in medians.items():
            print(
                f"  {'with' if augment else 'without'} augmentation, {peer:12} "
                f"{len(ids) / value:6.1f} images a second of CPU time, "
                f"{value / medians['fd_jax']:5.2f} x the time of fd_jax"
            )


def compare_outputs(source, ids, config, tokenizer, dataset) -> None:
    """Prints how far examples are apart without chance, in grey levels."""
    worst = dict.fromkeys(("image", "segment map", "crops"), 0.0)
    for i, name in enumerate(ids[: len(torch_data.SHAPES)]):
        height, width = torch_data.SHAPES[i]
        rng = np.random.default_rng(i)
        noise = rng.integers(0, 255, (height, width, 3), np.uint8)
        found = make_example(source[i], config, tokenizer, rng, training=False, background=noise)
        background = torch.from_numpy(noise).permute(2, 0, 1).contiguous()
        theirs = dataset(name, training=False, background=background)
        image = (theirs["image"].permute(1, 2, 0) + 1) * 127.5
        pixels = theirs["pixels"].permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)
        present = found.has_subject
        for key, a, b in (
            ("image", found.image, image),
            ("segment map", found.segment_map, theirs["segment_map"]),
            ("crops", found.subject_pixels[present], pixels[: len(present)][present] * 255),
        ):
            worst[key] = max(worst[key], float(np.abs(a - b.float().numpy()).max()))
    shown = ", ".join(f"{key} {value:.2f}" for key, value in worst.items())
    print(f"  largest difference without chance, in grey levels: {shown}")


def measure_waiting(root: Path, steps: int) -> None:
    """Trains the small model on the photographs, and prints how long steps waited for data."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "--config", "configs/sdm_small.py"]
        options = {
            "workdir": folder,
            "data.root": str(root),
            "loop.num-steps": str(steps),
            "loop.log-every": "5",
            "loop.eval-every": "0",
        }
        command += [part for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
        rows = read_metrics(Path(folder, FILE_NAME))
    rows = [row for row in rows if row["data_wait_share"] is not None]
    share = statistics.mean(row["data_wait_share"] for row in rows)
    rate = statistics.median(row["images_per_second"] for row in rows)
    print(f"\nconfigs/sdm_small.py on these photographs, {steps} steps of 16 images")
    print(f"  {100 * share:.1f} % of the time waiting for data, {rate:.1f} images a second")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--task", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        return do_task(lambda task: run(Trial(**task)), *arguments.task)
    packages = ("jax", "flax", "torch", "torchvision", "diffusers", "transformers")
    print(", ".join(f"{name} {metadata.version(name)}" for name in packages))
    compare_steps(arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        ids = torch_data.write_photographs(Path(folder), PHOTOGRAPHS)
        compare_examples(Path(folder), ids, arguments.rounds)
        measure_waiting(Path(folder), 30)


if __name__ == "__main__":
    main()
