"""Writes small checkpoints of untrained networks, in the formats of the released ones.

    python -m tests.helpers.untrained OUT

OUT/base is a Stable Diffusion as diffusers stores it, OUT/clip the vision tower of a CLIP as
transformers does, OUT/sdm.safetensors and OUT/tdm.safetensors the flat files that the released
training saves. The weights are random, the same on every machine: pictures made with them are
noise. They show that everything runs.
"""

import argparse
import os
import sys
import zlib
from pathlib import Path

import numpy as np

from fd_jax.architecture import (
    Architecture,
    CLIPTextConfig,
    CLIPVisionConfig,
    UNetConfig,
    VAEConfig,
)
from fd_jax.checkpoints.diffusers import write_folder, write_stable_diffusion
from fd_jax.checkpoints.flat_file import write_flat_file
from fd_jax.checkpoints.torch.names import flatten, unflatten
from fd_jax.errors import InputError
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from fd_jax.types import Params
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS

CONFIGS = Architecture(
    UNetConfig(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=1,
        cross_attention_dim=32,
        num_heads=4,
        norm_num_groups=8,
        sample_size=16,
    ),
    VAEConfig(
        block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8, sample_size=128
    ),
    CLIPTextConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4),
    CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        image_size=56,
        projection_dim=32,
    ),
)


def write_untrained(out: str | os.PathLike, configs: Architecture = CONFIGS, seed: int = 0) -> None:
    """Writes the checkpoints. Files that are there already are replaced.

    Raises:
        InputError: A file cannot be written.
    """
    out = Path(out)
    networks = make_networks(configs)
    abstract = {name: getattr(networks, name).abstract for name in SDM_PARTS}
    base = {name: random_params(abstract[name], seed, name) for name in abstract}
    write_stable_diffusion(out / "base", base, configs._asdict(), ScheduleConfig())
    write_folder("image_encoder", out / "clip", base["image_encoder"], configs.image_encoder)
    # Trained apart, the two models differ in their UNets and share the rest.
    for name, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS)):
        params = base | {"unet": random_params(abstract["unet"], seed, name)}
        write_flat_file(out / f"{name}.safetensors", {part: params[part] for part in parts})


def random_params(abstract: Params, seed: int, name: str) -> Params:
    """Returns parameters that follow from seed, name and path: scaled normal, norms near one."""

    def draw(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        key = "/".join([name, *map(str, path)])
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        normal = rng.standard_normal(shape, np.float32)
        match path[-1]:
            case "kernel":
                return normal / np.float32(np.sqrt(np.prod(shape[:-1])))
            case "scale":
                return 1 + 0.1 * normal
            case "bias":
                return 0.05 * normal
        return 0.2 * normal

    leaves = flatten(abstract)
    return unflatten({path: draw(path, leaf.shape) for path, leaf in leaves.items()})


def main() -> None:
    """Writes the checkpoints that the command line asks for."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    arguments = parser.parse_args()
    try:
        write_untrained(arguments.out, seed=arguments.seed)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"wrote untrained checkpoints to {arguments.out}; what they make is noise")


if __name__ == "__main__":
    main()
