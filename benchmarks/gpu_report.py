"""What `benchmarks/gpu.py` found, in words and tables."""

import re
import statistics
from typing import Any

PEERS = OURS, THEIRS = "fd_jax", "PyTorch diffusers"
GOALS = (
    "a picture of 512 px (50 steps, noise fusion) in 0.35 s at batch 16, some 300 TFLOP/s",
    "there 1.5 times as fast as PyTorch, compiled",
    "TDM: 100 images a second in training, on images and captions that are encoded beforehand",
)
BOUNDS = {"float32": 1e-4, "bfloat16": 5e-2}  # relative L2 difference to PyTorch in float32

# The first pattern that is found in the name of a kernel says what it is.
FAMILIES = {
    "attention": r"sdpa|fmha|flash|attention",
    "copies, transposes": r"memcpy|memset|copy|transpose|concatenate|nchwtonhwc|nhwctonchw",
    "convolution": r"conv(?!ert)|fprop|dgrad|wgrad|winograd",
    "matrix product": r"gemm|gemv|nvjet|cutlass|cublas|splitk|dot",
    "norms, elementwise": r"fusion|wrapped|reduce|softmax|convert|broadcast|select|iota|compare",
    "other": "",
}

COLUMNS = (
    *("part", "peer", "batch", "seconds an image", "images a second", "TFLOP/s", "share of peak"),
    *("peak memory", "first call", "speed of fd_jax", "agreement"),
)


def report(found: dict[str, Any]) -> str:
    """Returns the results in words and tables."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    peak, parts = found.get("peak", {}), found["parts"]
    lines = [f"{peak.get('device')}; {versions}; {found['minutes']:.1f} minutes"]
    if found["small"]:
        lines += ["", "Small models in float32, which show that all of it runs, and no more."]
    if rate := peak.get("flops_per_second"):
        lines += ["", f"{rate / 1e12:.4g} TFLOP/s in products of {peak['side']} x {peak['side']}"]
    lines += ["", "Goals, which are no results:", "", *(f"- {goal}" for goal in GOALS)]
    unet = parts.get("unet", {})
    if THEIRS in unet:
        calls = unet[OURS]["cudnn_attention"]
        lines += ["", "A UNet call, relative L2 difference to PyTorch in float32:", ""]
        lines += [f"- {name}: {value:.1e}" for name, value in unet[THEIRS]["differences"].items()]
        lines += [f"- bounds of fd_jax: {BOUNDS}", f"- calls of cuDNN's attention: {calls}"]
    if rows := [row for name in parts if name != "unet" for row in table_rows(found, name)]:
        lines += ["", "Pictures and steps of training:", "", *table(COLUMNS, rows)]
    for name, part in parts.items():
        if part.get(OURS, {}).get("profile"):
            lines += ["", f"{name}, one call of fd_jax, profiled:", ""]
            lines += profile_lines(part[OURS]["profile"])
    if found["missing"]:
        lines += ["", "Missing:", "", *(f"- {line}" for line in found["missing"])]
    return "\n".join(["# fd_jax against PyTorch on a GPU", "", *lines, ""])


def table_rows(found: dict[str, Any], name: str) -> list[tuple[str, ...]]:
    """A row for each peer."""
    part, rows = found["parts"][name], []
    rates = {peer: x["batch"] / statistics.median(x["seconds"]) for peer, x in part.items()}
    for peer, x in part.items():
        rate, memory = rates[peer], x.get("memory")
        prepared = found["prepare"]
        flops = rate * prepared.get(name, prepared[name.split("-")[0]])
        agreement = f"{x['difference']:.1e}" if "difference" in x else ""
        if "metrics" in x:
            agreement = f"loss {x['metrics'][0]['loss']:.5f}"
        rows.append(
            (
                *(name, f"{peer}, compiled" if x.get("compiled") else peer, str(x["batch"])),
                *(f"{1 / rate:.4f}", f"{rate:.2f}", f"{flops / 1e12:.4g}"),
                f"{100 * flops / found['peak']['flops_per_second']:.1f} %",
                f"{memory / 2**30:.1f} GiB" if memory else "",
                f"{x['first']:.0f} s",
                f"{rates[OURS] / rate:.2f} x" if OURS in rates else "",
                agreement,
            )
        )
    return rows


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def profile_lines(found: dict[str, Any]) -> list[str]:
    device = found["device_seconds"]
    families = [
        (name, f"{seconds:.4f}", f"{100 * seconds / device:.1f} %" if device else "")
        for name, seconds in found["families"].items()
    ]
    top = [
        (f"`{name[:80]}`", f"{seconds:.4f}", str(calls), family(name))
        for name, seconds, calls in found["top"]
    ]
    return [
        f"{found['seconds']:.3f} s, kernels {device:.3f} s; without profiler see above",
        "",
        *table(("kernels", "seconds", "share"), families),
        "",
        *table(("kernel", "seconds", "calls", "kind"), top),
    ]


def family(kernel: str) -> str:
    return next(name for name, found in FAMILIES.items() if re.search(found, kernel.lower()))
