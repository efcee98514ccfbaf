import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax import params
from fd_jax.errors import InputError
from fd_jax.schedule import ScheduleConfig, alphas_cumprod
from fd_jax.training.config import ObjectiveConfig
from fd_jax.training.tasks import unused_settings
from fd_jax.training.tasks.base import Batch, to_inputs
from fd_jax.training.tasks.sdm import check_levels
from tests.helpers.training import make_config, make_task, random_batch, to_jax

KEY = jax.random.key(1)


@functools.cache
def loss_of(name, **settings):
    """Returns the losses of a task as a function, compiled once for all tests."""
    task = make_task(name, **settings)

    @jax.jit
    def run(leaves, batch, key, use_mask):
        draws = task.draw(key, batch)._replace(use_mask=use_mask)
        return task.loss(params.nested(leaves), to_inputs(batch.examples), draws)[1]

    return run


def losses(leaves, batch, name="sdm", *, use_mask=False, **settings):
    found = loss_of(name, **settings)(leaves, to_jax(batch), KEY, jnp.array(use_mask))
    return {name: float(value) for name, value in found.items()}


def gradients(leaves, batch, name="sdm", **settings):
    task = make_task(name, **settings)

    @jax.jit
    def run(leaves, batch, key):
        draws = task.draw(key, batch)

        def loss(leaves):
            return task.loss(params.nested(leaves), to_inputs(batch.examples), draws)[0]

        return jax.grad(loss)(leaves)

    return run(to_jax(leaves), to_jax(batch), KEY)


def test_draws_follow_from_positions_not_from_rows():
    """However a batch is divided over processes, and in whatever order its rows come."""
    task = make_task()
    batch = to_jax(random_batch(6))
    order = np.array([4, 1, 5, 0, 3, 2])
    draws = task.draw(KEY, batch)
    shuffled = task.draw(KEY, jax.tree.map(lambda x: x[order], batch))
    for name in ("t", "noise", "posterior_noise"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(draws, name)[order])
    assert draws.noise.shape == (6, 8, 8, 4)
    assert len(np.unique(draws.noise)) == draws.noise.size
    np.testing.assert_array_equal(draws.use_mask, shuffled.use_mask)


def test_draws_are_spread_as_they_should_be():
    task = make_task(mask_probability=0.25)
    batch = to_jax(random_batch(1))
    many = Batch(batch.examples, jnp.arange(4000))
    draws = task.draw(KEY, many)
    assert 0 <= draws.t.min() < 5
    assert 994 < draws.t.max() <= 999
    assert abs(draws.t.mean() - 499.5) < 20
    masks = [bool(task.draw(jax.random.key(i), batch).use_mask) for i in range(400)]
    assert 60 < sum(masks) < 140


def test_timesteps_may_be_drawn_around_equal_signal_and_noise():
    batch = to_jax(random_batch(1))
    many = Batch(batch.examples, jnp.arange(500))
    uniform, narrow = (make_task(timestep_scale=scale).draw(KEY, many) for scale in (None, 0.1))
    levels = alphas_cumprod(ScheduleConfig())
    assert abs(np.median(levels[narrow.t]) - 0.5) < 0.02
    assert np.std(levels[narrow.t]) < np.std(levels[uniform.t]) / 4
    np.testing.assert_array_equal(narrow.noise, uniform.noise)


def test_a_scale_of_no_timesteps_is_refused():
    with pytest.raises(
        InputError, match=r"timestep_scale is 0\.0, expected a finite number above 0"
    ):
        make_task(timestep_scale=0.0)


def test_the_parts_add_up(leaves):
    found = losses(leaves, random_batch(3), localization_weight=0.5)
    assert found["loss"] == pytest.approx(
        found["denoising_loss"] + 0.5 * found["localization_loss"], rel=1e-6
    )


def test_the_tdm_knows_no_subjects(leaves):
    batch = random_batch(3)
    others = batch.examples._replace(subject_pixels=255 - batch.examples.subject_pixels)
    found = losses(leaves, batch, "tdm")
    assert set(found) == {"loss", "denoising_loss"}
    assert losses(leaves, batch._replace(examples=others), "tdm") == found
    none = random_batch(3, subjects=0)
    assert set(losses(leaves, none, "tdm")) == {"loss", "denoising_loss"}


def test_the_sdm_sees_its_subjects(leaves):
    batch = random_batch(3)
    others = batch.examples._replace(subject_pixels=255 - batch.examples.subject_pixels)
    assert losses(leaves, batch) != losses(leaves, batch._replace(examples=others))


def test_samples_without_subjects_in_masked_batches(leaves):
    """The first of three has none: by default it counts in full, as released not at all."""
    batch = random_batch(1)
    assert not batch.examples.has_subject.any()
    plain = losses(leaves, batch, use_mask=False)["denoising_loss"]
    assert losses(leaves, batch, use_mask=True)["denoising_loss"] == pytest.approx(plain)
    assert losses(leaves, batch, use_mask=True, absent="released")["denoising_loss"] == 0


@pytest.mark.parametrize("settings", [{"min_snr_gamma": 0.05}, {"prediction_type": "v_prediction"}])
def test_weights_and_targets_change_the_denoising_loss_alone(leaves, settings):
    batch = random_batch(3)
    plain, other = losses(leaves, batch), losses(leaves, batch, **settings)
    assert other["denoising_loss"] != pytest.approx(plain["denoising_loss"], rel=1e-3)
    assert other["localization_loss"] == pytest.approx(plain["localization_loss"], rel=1e-4)


@pytest.mark.slow
def test_the_denoising_loss_does_not_reach_the_autoencoder(leaves):
    """It would make latents that are easy to predict, and say nothing of the image."""
    batch = random_batch(2)
    grads = gradients(leaves, batch)
    assert all(not np.any(g) for path, g in grads.items() if path.startswith("vae/"))
    both = gradients(leaves, batch, trains_vae=True)
    moved = [path for path, g in both.items() if path.startswith("vae/") and np.any(g)]
    assert any("decoder" in path for path in moved)
    assert any("encoder" in path for path in moved)
    for path, g in grads.items():
        if not path.startswith("vae/"):
            np.testing.assert_allclose(both[path], g, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_the_autoencoder_alone_needs_nothing_else(leaves):
    """Its loss is what the others add for theirs, and reaches both of its halves."""
    vae = {path: leaf for path, leaf in leaves.items() if path.startswith("vae/")}
    batch = random_batch(3, subjects=0)
    found = losses(vae, batch, "vae", reconstruction_weight=2.0, divergence_weight=0.5)
    assert set(found) == {"loss", "reconstruction_loss", "divergence", "latent_std"}
    parts = found["reconstruction_loss"], found["divergence"]
    assert found["loss"] == pytest.approx(2 * parts[0] + 0.5 * parts[1], rel=1e-6)
    both = losses(leaves, batch, "tdm", trains_vae=True)
    assert (both["reconstruction_loss"], both["divergence"]) == pytest.approx(parts, rel=1e-5)

    grads = gradients(vae, batch, "vae")
    moved = [path for path, g in grads.items() if np.any(g)]
    assert any("decoder" in path for path in moved)
    assert any("encoder" in path for path in moved)


def test_the_spread_of_latents_is_that_before_scaling(leaves):
    batch, task = random_batch(3, subjects=0), make_task("vae")
    draws = task.draw(KEY, to_jax(batch))
    vae = task.networks.vae.bind(params.nested(to_jax(leaves))["vae"])
    assert vae.config.scaling_factor != 1
    mean, logvar = jax.jit(vae.encode)(to_inputs(to_jax(batch).examples).image)
    expected = np.std(mean + np.exp(logvar / 2) * draws.posterior_noise)
    found = losses(leaves, batch, "vae")["latent_std"]
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_levels_must_have_cross_attention():
    with pytest.raises(InputError, match=r"'mid_blok'.*did you mean 'mid_block'"):
        check_levels(("mid_blok",), ("down_blocks.0", "mid_block"))
    with pytest.raises(InputError, match="is empty"):
        check_levels((), ("mid_block",))
    check_levels(("mid_block",), ("down_blocks.0", "mid_block"))


@pytest.mark.parametrize(
    ("task", "objective", "unused"),
    [
        ("tdm", {"localization_weight": 0.1, "min_snr_gamma": 5.0}, ["localization_weight"]),
        ("tdm", {"mask_probability": 0.1, "absent": "released"}, ["mask_probability", "absent"]),
        ("sdm", {"localization_weight": 0.1, "timestep_scale": 0.5}, []),
        ("vae", {"timestep_scale": 0.5, "divergence_weight": 0.1}, ["timestep_scale"]),
    ],
)
def test_settings_without_an_effect_are_named(task, objective, unused):
    config = make_config(task=task, objective=ObjectiveConfig(**objective))
    expected = [f"objective.{name} has no effect on a {task}" for name in unused]
    assert unused_settings(config) == expected
