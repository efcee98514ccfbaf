"""What the benchmarks share: taking turns, comparing, and PyTorch models that sample as ours."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from fd_jax.inference.inputs import SamplingInputs

if TYPE_CHECKING:
    from fd_jax.checkpoints.torch.names import Part

ROOT = Path(__file__).parents[1]
TIMED_OUT = "ended after"
LAST_WORDS = 30  # lines of a process that failed
FUSION, SUBJECT = 1, 2  # stages, numbered as in fd_jax, whose module of them needs JAX


def in_turn(peers: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each peer, called once before."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for call in peers.values():
        call()
    for _ in range(rounds):
        for name, call in peers.items():
            begin = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in times.items()}


def show(title: str, seconds: dict[str, float]) -> None:
    print(f"\n{title}")
    ours = seconds["fd_jax"]
    for name, value in seconds.items():
        print(f"  {name:24} {value:9.3f} s    {value / ours:5.2f} x the time of fd_jax")


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def random_weights(abstract: dict, name: str) -> dict:
    """Parameters that follow from `name`, as `tests.helpers.untrained.random_params` draws them.

    Where the variable BENCHMARK_WEIGHTS names a folder they are kept there, and read the next time:
    drawing those of full size takes longer than anything else before the first program is compiled.
    """
    from fd_jax import params
    from fd_jax.ops.layers import num_params
    from tests.helpers.untrained import random_params

    if "BENCHMARK_WEIGHTS" not in os.environ:
        return random_params(abstract, 0, name)
    path = Path(os.environ["BENCHMARK_WEIGHTS"], f"{name}-{num_params(abstract)}.safetensors")
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        safetensors.numpy.save_file(params.flat(random_params(abstract, 0, name)), unfinished)
        unfinished.rename(path)
    return params.nested(safetensors.numpy.load_file(path))


def torch_model(
    cls: type, config: Any, params: dict, names: "Part", device: str = "cpu"
) -> nn.Module:
    """A model of diffusers or transformers with the same weights, none of which trains."""
    from fd_jax.checkpoints.torch.names import export

    with torch.device(device):
        model = cls.from_config(config) if isinstance(config, dict) else cls(config)
    model = model.eval().requires_grad_(False)
    state = {name: torch.from_numpy(value) for name, value in export(params, names)}
    if cls is AutoencoderKL:
        renamed = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
        for old, new in renamed.items():
            state = {name.replace(f".{old}.", f".{new}."): v for name, v in state.items()}
    model.load_state_dict(state)
    return model


def nchw(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def nhwc(x: Tensor) -> np.ndarray:
    return np.moveaxis(x.float().cpu().numpy(), 1, -1)


class Seen(NamedTuple):
    """What the models did at n steps, for b pictures, as fd_jax's trace has it."""

    tdm_saliency: Tensor  # n b 1 h w; NaN where the model did not run
    sdm_saliency: Tensor
    mask: Tensor  # 1 where the noise is the SDM's
    x0: Tensor  # n b 4 h w


def torch_sample(
    tdm: nn.Module,
    sdm: nn.Module,
    x: Tensor,
    contexts: Sequence[Tensor],
    guidance: float,
    *,
    times: Sequence[int],
    stages: Sequence[int],
    levels: Tensor,
    prediction_type: str = "epsilon",
    trace: bool = False,
) -> tuple[Tensor, Seen | None]:
    """The released sampling loop: DDIM, three stages, saliency-adaptive noise fusion.

    Args:
        tdm: UNet that makes scenes.
        sdm: UNet that makes persons.
        x: Noise.
        contexts: Of the negative prompt, the prompt, and the prompt with subjects.
        guidance: Scale.
        times: Timestep of each step.
        stages: The stage that it belongs to.
        levels: alphas_cumprod at each step, and after the last.
        prediction_type: What the UNets predict, `epsilon` or `v_prediction`.
        trace: Whether to return what happened at each step, too.
    """
    null, text, augmented = contexts
    levels = levels.to(x)
    rows = []

    def saliency(response: Tensor) -> Tensor:
        pooled = F.avg_pool2d(response.abs(), 4, stride=1, padding=1)
        pooled = F.interpolate(pooled, x.shape[2:], mode="bilinear")
        flat = pooled.mean(1, keepdim=True).flatten(1).float()
        return torch.softmax(flat, 1).view(x.shape[0], 1, *x.shape[2:])

    def guide(unet: nn.Module, t: int, uncond: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        doubled = torch.cat([x, x])
        eps = unet(doubled, t, torch.cat([uncond, cond])).sample
        if prediction_type == "v_prediction":
            eps = now.sqrt() * eps + (1 - now).sqrt() * doubled
        first, second = eps.chunk(2)
        response = guidance * (second - first)
        return first + response, response

    for t, stage, now, after in zip(times, stages, levels[:-1], levels[1:], strict=True):
        eps, response = {}, {}
        if stage <= FUSION:
            eps["tdm"], response["tdm"] = guide(tdm, t, null, text)
        if stage >= FUSION:
            eps["sdm"], response["sdm"] = guide(sdm, t, text, augmented)
        maps = {}
        if trace or stage == FUSION:
            maps = {name: saliency(response[name]) for name in response}
        mask = torch.full_like(x[:, :1], stage == SUBJECT)
        if stage == FUSION:
            mask = (maps["sdm"] > maps["tdm"]).to(x.dtype)
            noise = mask * eps["sdm"] + (1 - mask) * eps["tdm"]
        else:
            [noise] = eps.values()
        x0 = (x - (1 - now).sqrt() * noise) / now.sqrt()
        x = after.sqrt() * x0 + (1 - after).sqrt() * noise
        if trace:
            missing = torch.full_like(mask, torch.nan)
            rows.append((maps.get("tdm", missing), maps.get("sdm", missing), mask, x0))
    return x, Seen(*map(torch.stack, zip(*rows, strict=True))) if trace else None


class FusionMLP(nn.Module):
    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_dim)
        self.fc1, self.fc2 = nn.Linear(in_dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.layernorm(x))))


class Fusion(nn.Module):
    """Makes words of subjects, and of the words of a prompt that stand for them."""

    def __init__(self, dim: int):
        super().__init__()
        self.mlp1, self.mlp2 = FusionMLP(2 * dim, dim), FusionMLP(dim, dim)
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, words: Tensor, subjects: Tensor) -> Tensor:
        h = self.mlp1(torch.cat([words, subjects], dim=-1)) + words
        return self.layer_norm(self.mlp2(h) + h)


class Bundle(NamedTuple):
    """The models of a folder that `fd_jax.checkpoints.bundle` writes."""

    tdm: nn.Module
    sdm: nn.Module
    vae: nn.Module
    text: nn.Module
    vision: nn.Module
    fusion: nn.Module

    def contexts(self, inputs: SamplingInputs) -> tuple[Tensor, Tensor, Tensor]:
        """What the UNets are guided with, of subjects with one photograph each."""
        assert inputs.weights is None
        ids = torch.from_numpy(np.concatenate([inputs.null_ids, inputs.input_ids])).long()
        null, text = self.text(ids)[0].chunk(2)
        pixels = inputs.subject_pixels[inputs.has_subject]
        pixels = (pixels - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD)
        subjects = self.vision(pixel_values=nchw(pixels)).image_embeds
        rows, places = np.nonzero(inputs.has_subject)
        where = tuple(map(torch.from_numpy, (rows, inputs.subject_token_index[rows, places])))
        return null, text, text.index_put(where, self.fusion(text[where], subjects))

    def decode(self, latents: Tensor) -> np.ndarray:
        """Images in 0..1."""
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return nhwc((images / 2 + 0.5).clamp(0, 1))


def read_bundle(folder: Path) -> Bundle:
    """Reads the models, in float32."""
    files = {name: folder / f"{name}.safetensors" for name in ("sdm", "tdm")}
    tensors = {name: safetensors.torch.load_file(path) for name, path in files.items()}

    def weights(name: str, prefix: str) -> dict[str, Tensor]:
        held = tensors[name].items()
        return {k.removeprefix(prefix): v.float() for k, v in held if k.startswith(prefix)}

    def config(part: str) -> dict[str, Any]:
        return json.loads((folder / part / "config.json").read_text())

    text = CLIPTextConfig(**config("base/text_encoder"))
    models = {
        "tdm": UNet2DConditionModel.from_config(config("base/unet")),
        "sdm": UNet2DConditionModel.from_config(config("base/unet")),
        "text": CLIPTextModel(text),
        "vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**config("clip"))),
        "fusion": Fusion(text.hidden_size),
    }
    models["tdm"].load_state_dict(weights("tdm", "unet."))
    models["sdm"].load_state_dict(weights("sdm", "unet."))
    models["text"].load_state_dict(weights("sdm", "text_encoder."))
    models["vision"].load_state_dict(weights("sdm", "image_encoder."))
    models["fusion"].load_state_dict(weights("sdm", "postfuse_module."))
    models["vae"] = AutoencoderKL.from_pretrained(
        folder / "base/vae", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    for model in models.values():
        model.eval()
    return Bundle(**models)


class TaskError(Exception):
    """A process has not done its task."""

    @property
    def out_of_memory(self) -> bool:
        found = str(self).lower()
        return "resource_exhausted" in found or "out of memory" in found

    @property
    def timed_out(self) -> bool:
        return str(self).startswith(TIMED_OUT)


def in_process(
    script: str,
    task: Any,
    environment: Mapping[str, str],
    *,
    cpus: Collection[int] | None = None,
    timeout: float | None = None,
) -> Any:
    """Has a script do a task, `--task TASK OUT`, and returns what `do_task` writes to OUT.

    Args:
        script: Path of the script.
        task: What it is to do, in JSON's types.
        environment: Variables besides those of this process.
        cpus: Which it may use; all of this process by default.
        timeout: Seconds after which it is ended, with all that it has started.

    Raises:
        TaskError: It failed, as it does where memory runs out, or took too long.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    cpus = cpus or os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder, "out.json"), Path(folder, "stderr")
        command = [sys.executable, script, "--task", json.dumps(task), str(out)]
        with (
            log.open("wb") as said,
            subprocess.Popen(
                command,
                env=environment,
                stderr=said,
                start_new_session=True,  # compilers start processes of their own
                preexec_fn=lambda: os.sched_setaffinity(0, cpus),
            ) as process,
        ):
            try:
                process.wait(timeout)
                error = f"exit status {process.returncode}"
            except subprocess.TimeoutExpired:
                error = f"{TIMED_OUT} {timeout:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        found = json.loads(out.read_text()) if out.exists() else {}
        if "result" not in found:
            last = log.read_text(errors="replace").splitlines()[-LAST_WORDS:]
            print(*last, sep="\n", file=sys.stderr, flush=True)
            raise TaskError(found.get("error", error))
        return found["result"]


def do_task(function: Callable[[Any], Any], task: str, out: str) -> None:
    """Does what `in_process` asks for and writes the result, or before it fails what went wrong."""
    try:
        found = {"result": function(json.loads(task))}
    except Exception as error:
        # First words: JAX and PyTorch add many lines on memory and on traces.
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
        Path(out).write_text(json.dumps(found))
        raise
    Path(out).write_text(json.dumps(found))
