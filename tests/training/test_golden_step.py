"""Parity of the SDM's losses and gradients with the released PyTorch code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax import params, sharding
from fd_jax.checkpoints.placement import Placement
from fd_jax.checkpoints.torch.names import flatten, to_torch, torch_names
from fd_jax.compilation import compiler_options
from fd_jax.networks import make_networks
from fd_jax.schedule import ScheduleConfig
from fd_jax.training.config import ObjectiveConfig
from fd_jax.training.optimizer import OptimizerConfig, learning_rate_factors
from fd_jax.training.tasks.base import Draws, Inputs
from fd_jax.training.tasks.sdm import Sdm
from tests.helpers.flat_files import SDM_PARTS, load_flat_file, read_configs
from tests.helpers.released_weights import write_checkpoints

pytestmark = pytest.mark.golden

MESH = sharding.make_mesh(jax.devices()[:1])

# What the released training trains.
TRAIN = (("unet/", 1.0), ("subject_fusion/", 1.0), (r"image_encoder/layers/-[12]/", 1.0))


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -3, -1), np.float32)


@pytest.fixture(scope="module")
def model(goldens, tmp_path_factory):
    """Networks, and all parameters by path."""
    paths = write_checkpoints(goldens, tmp_path_factory.mktemp("released"))
    configs, _ = read_configs(paths["base"], paths["image_encoder"])
    networks = make_networks(configs, attention="plain")
    where = sharding.replicated(MESH)
    abstract = {part: getattr(networks, part).abstract for part in SDM_PARTS}
    placement = Placement("float32", lambda path, shape: where)
    loaded, _ = load_flat_file(paths["sdm"], SDM_PARTS, abstract, placement, wanted=list(SDM_PARTS))
    return configs, networks, params.flat(loaded)


@pytest.fixture(scope="module", params=["train_sdm_masked", "train_sdm_unmasked"])
def step(request, goldens, model):
    """The golden, the losses, and the gradient by PyTorch's names."""
    golden = dict(np.load(goldens / f"{request.param}.npz"))
    configs, networks, leaves = model
    # Which layers the localization loss looks at, of those that this UNet has.
    levels = [
        name
        for name in ObjectiveConfig().localization_levels
        if name in configs.unet.attending_levels
    ]
    config = ObjectiveConfig(absent="released", localization_levels=tuple(levels))
    task = Sdm(networks, configs, ScheduleConfig(), config)
    inputs = Inputs(
        channels_last(golden["pixel_values"]),
        channels_last(golden["object_pixel_values"]),
        golden["object_segmaps"],
        golden["input_ids"].astype(np.int32),
        golden["image_token_idx"].astype(np.int32),
        golden["image_token_idx_mask"],
    )
    draws = Draws(
        golden["timesteps"].astype(np.int32),
        channels_last(golden["noise"]),
        channels_last(golden["vae_noise"]),
        np.array("unmasked" not in request.param),
    )
    names = learning_rate_factors(OptimizerConfig(train=TRAIN), leaves)
    trained = {path: leaves[path] for path in names}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in names}

    options = compiler_options(MESH, jnp.float32, has_gradients=True)

    @functools.partial(jax.jit, compiler_options=options)
    def gradient(trained, frozen, inputs, draws):
        def loss(trained):
            return task.loss(params.nested(trained | frozen), inputs, draws)

        return jax.grad(loss, has_aux=True)(trained)

    grads, metrics = gradient(trained, frozen, jax.tree.map(jnp.asarray, inputs), draws)
    found = {}
    for part, values in params.nested(grads).items():
        where = SDM_PARTS[part]
        for path, value in flatten(values).items():
            name = where.prefix + torch_names(path, where.names)[0]
            found[name] = to_torch(path, np.asarray(value))
    return golden, metrics, found


def test_losses(step):
    golden, metrics, _ = step
    for ours, theirs in (
        ("denoising_loss", "denoise_loss"),
        ("localization_loss", "localization_loss"),
        ("loss", "loss"),
    ):
        np.testing.assert_allclose(metrics[ours], golden[theirs], rtol=1e-5)


def test_what_trains(step):
    golden, _, grads = step
    assert sorted(grads) == sorted(golden["grad_names"].tolist())


def test_norms_of_all_gradients(step):
    golden, _, grads = step
    norms = [np.linalg.norm(grads[name].astype(np.float64)) for name in golden["grad_names"]]
    # A bias of all keys alike changes no softmax: its gradient is zero, but for rounding.
    smallest = 1e-8 * np.max(golden["grad_norms"])
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-3, atol=smallest)


def test_whole_gradients(step):
    golden, _, grads = step
    whole = {name.removeprefix("grad:"): golden[name] for name in golden if "grad:" in name}
    assert len(whole) == 4
    for name, expected in whole.items():
        error = np.linalg.norm(grads[name] - expected) / np.linalg.norm(expected)
        assert error < 1e-3, name
