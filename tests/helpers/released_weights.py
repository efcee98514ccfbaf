"""Deterministic weights of the released networks, by the rule that the goldens were made with.

A tensor follows from seed, name and shape: draws n from a normal distribution, seeded with the
seed and the name's CRC-32. Vectors are 1 + 0.1 n for weights, 0.2 n for the class embedding and
0.05 n for the rest; embedding tables are 0.2 n; all others are n, divided by the root of the
product of all but the first dimension.
"""

import json
import math
import pathlib
import shutil
import zlib

import numpy as np

from fd_jax.assets import TOKENIZER
from fd_jax.checkpoints.config_json import schedule_to_json
from fd_jax.checkpoints.torch.files import write_safetensors
from fd_jax.files import write_json
from fd_jax.schedule import ScheduleConfig


def make_tensor(seed: int, name: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    n = rng.standard_normal(shape, dtype=np.float32)
    is_weight = name.endswith("weight")
    if len(shape) < 2:
        if name.endswith("class_embedding"):
            return 0.2 * n
        return 1 + 0.1 * n if is_weight else 0.05 * n
    is_table = len(shape) == 2 and is_weight and "embedding" in name
    if is_table and "time_embedding" not in name:
        return 0.2 * n
    return n * np.float32(1 / math.sqrt(math.prod(shape[1:])))


def write_checkpoints(goldens: pathlib.Path, out: pathlib.Path) -> dict[str, pathlib.Path]:
    """Writes the checkpoints that the goldens in a folder were computed from."""
    meta, shapes, configs = (
        json.loads((goldens / f"{name}.json").read_text()) for name in ("meta", "shapes", "configs")
    )
    config, seed = meta["config"], meta["seed"]

    def write(path: pathlib.Path, key: str, seed: int) -> None:
        tensors = {
            name: np.asarray(make_tensor(seed, name, shape), np.float32)
            for name, shape in shapes[config][key].items()
        }
        write_safetensors(path, tensors, {"format": "pt"})

    base = out / "base"
    for key, json_key, stem in (
        ("unet", "unet", "diffusion_pytorch_model"),
        ("vae", "vae", "diffusion_pytorch_model"),
        ("text_encoder", "text", "model"),
    ):
        write_json(base / key / "config.json", configs[config][json_key])
        write(base / key / f"{stem}.safetensors", key, seed)
    write_json(base / "scheduler" / "scheduler_config.json", schedule_to_json(ScheduleConfig()))
    shutil.copytree(TOKENIZER, base / "tokenizer")
    write_json(out / "clip" / "config.json", {"vision_config": configs[config]["vision"]})
    write(out / "clip" / "model.safetensors", "clip", seed)
    write(out / "sdm.safetensors", "sdm", seed + 1)
    write(out / "tdm.safetensors", "tdm", seed + 2)
    return {
        "base": base,
        "sdm": out / "sdm.safetensors",
        "tdm": out / "tdm.safetensors",
        "image_encoder": out / "clip",
    }
