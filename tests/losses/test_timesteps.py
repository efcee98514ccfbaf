import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.losses import timesteps
from fd_jax.schedule import ScheduleConfig, alphas_cumprod

SCHEDULE = ScheduleConfig()


def drawn(scale, count=20_000):
    cumulative = jnp.asarray(timesteps.laplace(SCHEDULE, scale))
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: timesteps.draw(key, cumulative))(keys))


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_log_snr_of_draws_has_the_moments_of_a_laplace_density(scale):
    level = alphas_cumprod(SCHEDULE)
    log_snr = np.log(level / (1 - level))[drawn(scale)]

    assert abs(np.median(log_snr)) < 0.03
    assert np.mean(np.abs(log_snr)) == pytest.approx(scale, rel=0.05)


def test_draws_are_timesteps_of_the_schedule():
    t = drawn(3.0)

    assert t.dtype == np.int32
    assert t.min() >= 0
    assert t.max() < SCHEDULE.num_train_timesteps
    assert len(np.unique(t)) > 900


def test_a_schedule_of_one_timestep():
    one = ScheduleConfig(num_train_timesteps=1)

    assert timesteps.draw(jax.random.key(1), jnp.asarray(timesteps.laplace(one, 0.5))) == 0
