"""What the benchmarks share: taking turns, comparing, and PyTorch models that sample as ours."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

if TYPE_CHECKING:
    from fd_jax.checkpoints.torch_weights import Part

ROOT = Path(__file__).parents[1]
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


def torch_model(cls: type, config: Any, params: dict, names: "Part") -> nn.Module:
    """A model of diffusers or transformers with the same weights, none of which trains."""
    from fd_jax.checkpoints.torch_weights import export  # needs JAX, which a peer may do without

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


class Bundle(NamedTuple):
    """The models of a folder that `fd_jax.checkpoints.bundle` writes."""

    tdm: nn.Module
    sdm: nn.Module
    vae: nn.Module
    text: nn.Module
    vision: nn.Module
    fusion: dict[str, Tensor]  # weights

    def contexts(
        self,
        input_ids: np.ndarray,
        null_ids: np.ndarray,
        subject_pixels: np.ndarray,
        subject_token_index: np.ndarray,
        has_subject: np.ndarray,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the UNets are guided with, of fd_jax's `Requests`."""
        ids = torch.from_numpy(np.concatenate([null_ids, input_ids])).long()
        null, text = self.text(ids)[0].chunk(2)
        pixels = subject_pixels[has_subject]
        pixels = (pixels - np.float32(OPENAI_CLIP_MEAN)) / np.float32(OPENAI_CLIP_STD)
        subjects = self.vision(pixel_values=nchw(pixels)).image_embeds
        rows, places = np.nonzero(has_subject)
        where = tuple(map(torch.from_numpy, (rows, subject_token_index[rows, places])))
        return null, text, text.index_put(where, self._fuse(text[where], subjects))

    def _fuse(self, words: Tensor, subjects: Tensor) -> Tensor:
        def apply(kind: Callable, x: Tensor, name: str, *args) -> Tensor:
            return kind(x, *args, self.fusion[f"{name}.weight"], self.fusion[f"{name}.bias"])

        def mlp(x: Tensor, name: str) -> Tensor:
            x = apply(F.layer_norm, x, f"{name}.layernorm", x.shape[-1:])
            return apply(F.linear, F.gelu(apply(F.linear, x, f"{name}.fc1")), f"{name}.fc2")

        h = mlp(torch.cat([words, subjects], dim=-1), "mlp1") + words
        h = mlp(h, "mlp2") + h
        return apply(F.layer_norm, h, "layer_norm", h.shape[-1:])

    def decode(self, latents: Tensor) -> np.ndarray:
        """Images in 0..1."""
        images = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return nhwc((images / 2 + 0.5).clamp(0, 1))


def read_bundle(folder: Path) -> Bundle:
    """Reads the models, in float32."""
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("sdm", "tdm")}

    def weights(name: str, prefix: str) -> dict[str, Tensor]:
        held = tensors[name].items()
        return {k.removeprefix(prefix): v.float() for k, v in held if k.startswith(prefix)}

    def config(part: str) -> dict[str, Any]:
        return json.loads((folder / part / "config.json").read_text())

    models = {
        "tdm": UNet2DConditionModel.from_config(config("base/unet")),
        "sdm": UNet2DConditionModel.from_config(config("base/unet")),
        "text": CLIPTextModel(CLIPTextConfig(**config("base/text_encoder"))),
        "vision": CLIPVisionModelWithProjection(CLIPVisionConfig(**config("clip"))),
    }
    models["tdm"].load_state_dict(weights("tdm", "unet."))
    models["sdm"].load_state_dict(weights("sdm", "unet."))
    models["text"].load_state_dict(weights("sdm", "text_encoder."))
    models["vision"].load_state_dict(weights("sdm", "image_encoder."))
    models["vae"] = AutoencoderKL.from_pretrained(
        folder / "base/vae", torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    for model in models.values():
        model.eval()
    return Bundle(**models, fusion=weights("sdm", "postfuse_module."))


def in_process(
    script: str, task: Any, environment: Mapping[str, str], cpus: Collection[int] | None = None
) -> Any:
    """Has a script do a task, `--task TASK OUT`, and returns the JSON that it writes to OUT.

    Args:
        script: Path of the script.
        task: What it is to do, in JSON's types.
        environment: Variables besides those of this process.
        cpus: Which it may use; all of this process by default.

    Returns:
        None if it fails, as it does where memory runs out. Its last words are printed.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    cpus = cpus or os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        command = [sys.executable, script, "--task", json.dumps(task), str(out)]
        done = subprocess.run(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            preexec_fn=lambda: os.sched_setaffinity(0, cpus),
        )
        if done.returncode:
            print(f"  {(done.stderr.strip().splitlines() or ['no message'])[-1]}"[:300])
            return None
        return json.loads(out.read_text())
