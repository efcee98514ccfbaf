"""Eight CPU devices, float32 matrix products, strict shapes; checkpoints that tests share."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    )

import jax
import pytest

from fd_jax import FaceDiffuser, sharding
from fd_jax.config import CLIPTextConfig, CLIPVisionConfig, Configs, UNetConfig, VAEConfig
from fd_jax.demo_checkpoints import write_demo

jax.config.update("jax_default_matmul_precision", "float32")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same programs.
COMPILE_CACHE = tempfile.TemporaryDirectory(prefix="fd_jax_tests_")
jax.config.update("jax_compilation_cache_dir", COMPILE_CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Latents of 8 x 8, images of 16 x 16.
TINY = Configs(
    UNetConfig(
        block_out_channels=(8, 16),
        has_attention=(True, False),
        layers_per_block=1,
        cross_attention_dim=12,
        num_heads=2,
        norm_num_groups=4,
        sample_size=8,
    ),
    VAEConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=16),
    CLIPTextConfig(hidden_size=12, intermediate_size=20, num_layers=1, num_heads=2),
    CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=14,
        num_layers=1,
        num_heads=2,
        image_size=28,
        projection_dim=12,
    ),
)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """The numbers of the released code: the tests' own, or those of FD_GOLDENS."""
    return pathlib.Path(os.environ.get("FD_GOLDENS") or pathlib.Path(__file__).parent / "goldens")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Checkpoints of untrained tiny networks, as `FaceDiffuser.from_pretrained` takes them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_demo(folder, TINY)
    names = {"base": "base", "sdm": "sdm.safetensors", "tdm": "tdm.safetensors"}
    return {key: folder / name for key, name in (names | {"image_encoder": "clip"}).items()}


@pytest.fixture(scope="session")
def pipe(checkpoints) -> FaceDiffuser:
    """A tiny pipeline on one device."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    return FaceDiffuser.from_pretrained(**checkpoints, mesh=mesh)


@pytest.fixture(scope="session")
def people() -> list[pathlib.Path]:
    """Photographs of four people."""
    folder = pathlib.Path(__file__).parents[1] / "fd_jax" / "assets" / "people"
    return sorted(folder.glob("*.jpg"))
