import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fd_jax.architecture import Architecture, ConfigError
from fd_jax.conditioning.clip_text import TextEncoder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.conditioning.subject_fusion import SubjectFusion
from fd_jax.models.unet import UNet
from fd_jax.models.vae import VAE
from fd_jax.networks import make_networks
from fd_jax.ops.layers import num_params
from tests.helpers.flat_files import read_configs
from tests.helpers.modules import normal
from tests.helpers.untrained import random_params

NAMES = ("text_encoder", "image_encoder", "subject_fusion", "unet", "vae")


@pytest.fixture(scope="module")
def configs(checkpoints):
    return read_configs(checkpoints["base"], checkpoints["image_encoder"])[0]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def networks(request, configs):
    return make_networks(configs, dtype=request.param)


def test_sizes_of_the_real_networks():
    """Stable Diffusion 1.5, and CLIP ViT-L/14, whose projection has no bias."""
    networks = make_networks(Architecture())
    found = {name: num_params(getattr(networks, name).abstract) for name in NAMES}
    assert found == {
        "text_encoder": 123_060_480,
        "image_encoder": 303_179_776 + 768 * 1024,
        "subject_fusion": 2 * 1536
        + (1536 + 1 + 768 + 1) * 768
        + 2 * 768
        + 2 * (768 + 1) * 768
        + 2 * 768,
        "unet": 859_520_964,
        "vae": 83_653_863,
    }


def test_nothing_is_allocated(networks):
    for name in NAMES:
        for leaf in jax.tree.leaves(getattr(networks, name).abstract):
            assert type(leaf) is jax.ShapeDtypeStruct


def test_parameters_are_float32_whatever_computes(networks):
    for name in NAMES:
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(getattr(networks, name).abstract)}
        assert dtypes == {jnp.dtype("float32")}


def test_networks_are_those_that_flax_makes(configs):
    """Flax itself draws a new key for each parameter; ours share one."""
    networks = make_networks(configs)
    width = configs.text_encoder.hidden_size
    makers = {
        "text_encoder": lambda: TextEncoder(configs.text_encoder, rngs=nnx.Rngs(0)),
        "image_encoder": lambda: ImageEncoder(configs.image_encoder, rngs=nnx.Rngs(0)),
        "subject_fusion": lambda: SubjectFusion(width, rngs=nnx.Rngs(0)),
        "unet": lambda: UNet(configs.unet, rngs=nnx.Rngs(0)),
        "vae": lambda: VAE(configs.vae, rngs=nnx.Rngs(0)),
    }
    for name, make in makers.items():
        state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make)))
        expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        abstract = getattr(networks, name).abstract
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == expected


def test_modules_hold_the_parameters_they_are_given(networks):
    for name in NAMES:
        network = getattr(networks, name)
        params = random_params(network.abstract, 3, name)
        held = nnx.to_pure_dict(nnx.state(network.bind(params)))
        jax.tree.map(np.testing.assert_array_equal, held, params)


def test_bound_networks_compute(networks, configs):
    """They compute in their dtype, with the parameters that the function is given."""
    fusion, dtype = networks.subject_fusion, networks.dtype
    width = configs.text_encoder.hidden_size
    text, subjects = normal((1, 5, width), dtype=dtype), normal((1, 2, width), 1, dtype)
    index, has_subject = jnp.array([[3, 1]]), jnp.array([[True, False]])

    @jax.jit
    def call(params):
        return fusion.bind(params)(text, subjects, index, has_subject)

    first, second = (call(random_params(fusion.abstract, seed, "fusion")) for seed in (0, 1))

    assert first.dtype == second.dtype == dtype
    same = np.asarray(first == second).all(axis=-1)[0]
    assert same.tolist() == [True, True, True, False, True]


def test_networks_that_do_not_fit(configs):
    unet = dataclasses.replace(configs.unet, cross_attention_dim=16)
    with pytest.raises(ConfigError, match="cross_attention_dim of the UNet is 16, expected 12"):
        make_networks(configs._replace(unet=unet))
