"""Eight CPU devices, float32 matrix products, strict shapes; checkpoints that tests share."""

import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most functions run once or twice: LLVM's optimizations take longer than they save. Of a flag that
# is given twice the last counts.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
)

import jax
import pytest

from fd_jax import FaceDiffuser, assets, sharding
from fd_jax.checkpoints.bundle import bundle as write_bundle
from fd_jax.networks import make_networks
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS
from tests.helpers.networks import TINY
from tests.helpers.runs import write_run
from tests.helpers.untrained import random_params, write_untrained

jax.config.update("jax_default_matmul_precision", "float32")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Many tests compile the same functions, also in processes that they start and in those of xdist,
# which inherit the folder. JAX_COMPILATION_CACHE_DIR keeps them between runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILE_CACHE = tempfile.TemporaryDirectory(prefix="fd_jax_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILE_CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="session")
def goldens() -> pathlib.Path:
    """The numbers of the released code: the tests' own, or those of FD_GOLDENS."""
    return pathlib.Path(os.environ.get("FD_GOLDENS") or pathlib.Path(__file__).parent / "goldens")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Checkpoints of untrained tiny networks, as `FaceDiffuser.from_pretrained` takes them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_untrained(folder, TINY)
    names = {"base": "base", "sdm": "sdm.safetensors", "tdm": "tdm.safetensors"}
    return {key: folder / name for key, name in (names | {"image_encoder": "clip"}).items()}


@pytest.fixture(scope="session")
def pipe(checkpoints) -> FaceDiffuser:
    """A tiny pipeline on one device."""
    mesh = sharding.make_mesh(jax.devices()[:1])
    return FaceDiffuser.from_pretrained(**checkpoints, mesh=mesh)


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Runs of a tiny SDM and of the TDM that it shares text encoder and VAE with."""
    folder, networks = tmp_path_factory.mktemp("pair"), make_networks(TINY)
    shared = {part: random_params(getattr(networks, part).abstract, 1, part) for part in SDM_PARTS}
    runs = {}
    for kind, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS)):
        params = {part: shared[part] for part in parts}
        params["unet"] = random_params(networks.unet.abstract, 1, kind)
        runs[kind] = write_run(folder / kind, kind, params, TINY)
    return runs


@pytest.fixture(scope="session")
def bundle(pair, tmp_path_factory) -> pathlib.Path:
    """Folder of models as the package holds them, but tiny and untrained."""
    out = tmp_path_factory.mktemp("bundle") / "demo"
    write_bundle(pair["sdm"], pair["tdm"], out, dtype="float32")
    return out


@pytest.fixture
def bundled_models(bundle, monkeypatch) -> pathlib.Path:
    """Puts these in the place of the package's own."""
    monkeypatch.setattr(assets, "DEMO", bundle)
    return bundle


@pytest.fixture(scope="session")
def people() -> list[pathlib.Path]:
    """Photographs of four people."""
    ids = "P003", "P005", "P006", "P007"
    return [assets.PEOPLE / name / f"{name}.jpg" for name in ids]
