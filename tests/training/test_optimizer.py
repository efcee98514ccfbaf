import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fd_jax.errors import InputError
from fd_jax.training.optimizer import (
    OptimizerConfig,
    learning_rate,
    learning_rate_factors,
    make_optimizer,
    update_ema,
)

PATHS = [
    "unet/conv_in/kernel",
    "unet/down_blocks/0/resnets/1/conv1/kernel",
    *(f"image_encoder/layers/{i}/mlp/fc1/bias" for i in range(12)),
    "vae/encoder/conv_in/kernel",
]


def test_the_first_pattern_counts():
    config = OptimizerConfig(train=(("resnets/", 0.5), ("unet/", 1.0)))
    assert learning_rate_factors(config, PATHS) == {PATHS[0]: 1.0, PATHS[1]: 0.5}


def test_layers_may_be_counted_from_the_end():
    config = OptimizerConfig(train=((r"image_encoder/layers/-[12]/", 1.0),))
    assert list(learning_rate_factors(config, PATHS)) == [
        f"image_encoder/layers/{i}/mlp/fc1/bias" for i in (10, 11)
    ]


def test_what_has_no_rate_is_frozen():
    config = OptimizerConfig(train=(("conv_in", 0.0), ("unet/", 1.0)))
    assert list(learning_rate_factors(config, PATHS)) == [PATHS[1]]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((("unett/", 1.0),), "'unett/' is found in no path"),
        ((("unet/", 0.0),), "nothing trains"),
        ((), "nothing trains"),
    ],
)
def test_tables_that_train_nothing_are_refused(train, message):
    with pytest.raises(InputError, match=message):
        learning_rate_factors(OptimizerConfig(train=train), PATHS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"b2": 1.5}, "b2 is 1.5"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"train": (("(", 1.0),)}, "no pattern"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_schedules():
    def at(*steps, **settings):
        rate = learning_rate(OptimizerConfig(learning_rate=2.0, **settings), 100)
        return np.array([rate(step) for step in steps])

    np.testing.assert_allclose(at(0, 99), [2, 2])
    np.testing.assert_allclose(at(0, 1, 3, 4, 99, warmup_steps=4), [0.5, 1, 2, 2, 2])
    np.testing.assert_allclose(at(0, 50, 100, schedule="linear"), [2, 1, 0])
    np.testing.assert_allclose(
        at(10, 55, 100, schedule="cosine", warmup_steps=10), [2, 1, 0], atol=1e-6
    )


def test_it_steps_as_pytorch_does():
    """One parameter, by hand: clipped to norm 1, AdamW with bias correction and decoupled decay."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, {"a": 1.0, "b": 0.5}, 10)
    params = {"a": jnp.array([2.0]), "b": jnp.array([1.0])}
    state = optimizer.init(params)
    m, v, expected = np.zeros(2), np.zeros(2), np.array([2.0, 1.0])
    for step, grads in enumerate([[3.0, 4.0], [0.1, -0.2], [0.0, 5.0]], start=1):
        updates, state = optimizer.update(
            {"a": jnp.array([grads[0]]), "b": jnp.array([grads[1]])}, state, params
        )
        params = optax.apply_updates(params, updates)
        g = np.array(grads) * min(1, 1 / (np.linalg.norm(grads) + 1e-6))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        direction = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        expected -= 0.1 * np.array([1, 0.5]) * (direction + 0.5 * expected)
        np.testing.assert_allclose([params["a"][0], params["b"][0]], expected, rtol=1e-5)


def test_the_average_follows_closely_at_first():
    def after(step):
        ema = update_ema(0.9, {"a": jnp.zeros(())}, {"a": jnp.ones(())}, jnp.array(step))
        return float(ema["a"])

    assert after(0) == pytest.approx(0.9)
    assert after(8) == pytest.approx(0.5)
    assert after(10_000) == pytest.approx(0.1)
    assert jax.eval_shape(lambda: update_ema(0.9, {}, {}, jnp.array(0))) == {}
