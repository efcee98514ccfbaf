import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.sampling.guidance import as_eps, guided, no_model
from fd_jax.sampling.solvers import make_solver_rows
from fd_jax.schedule import ScheduleConfig
from tests.helpers.modules import normal

X, UNCOND, COND = normal((3, 4, 5, 4)), normal((3, 7, 6), 1), normal((3, 7, 6), 2)
SCHEDULE = ScheduleConfig()
ROWS = make_solver_rows("ddim", SCHEDULE, 8)
ROW = jax.tree.map(lambda column: jnp.asarray(column[3]), ROWS)
T = ROW.t


def denoiser(x, t, context):
    """Differs by image, timestep and context."""
    return (
        jnp.sin(x)
        + (t / 1000)[:, None, None, None]
        + context.mean(axis=(1, 2))[:, None, None, None]
    )


@pytest.fixture
def calls():
    return []


@pytest.fixture
def watched(calls):
    def watched(x, t, context):
        calls.append((x, t, context))
        return denoiser(x, t, context)

    return watched


@pytest.mark.parametrize(("scale", "context"), [(0.0, UNCOND), (1.0, COND)])
def test_without_guidance_one_context_is_left(scale, context):
    eps, _ = guided(as_eps(denoiser, SCHEDULE), jnp.float32(scale))(X, ROW, UNCOND, COND)

    np.testing.assert_allclose(eps, denoiser(X, jnp.full(3, T), context), rtol=1e-5, atol=1e-6)


def test_guidance_goes_on_in_the_same_direction():
    """Guided noise is linear in the scale."""
    at = [
        guided(as_eps(denoiser, SCHEDULE), jnp.float32(scale))(X, ROW, UNCOND, COND)[0]
        for scale in (0, 1, 7)
    ]

    np.testing.assert_allclose(at[2] - at[0], 7 * (at[1] - at[0]), rtol=1e-4, atol=1e-5)


def test_the_response_is_how_far_guidance_moves():
    eps, response = guided(as_eps(denoiser, SCHEDULE), jnp.float32(5))(X, ROW, UNCOND, COND)

    unguided, _ = guided(as_eps(denoiser, SCHEDULE), jnp.float32(0))(X, ROW, UNCOND, COND)
    np.testing.assert_allclose(response, eps - unguided, rtol=1e-4, atol=1e-5)


def test_equal_contexts_have_no_response():
    eps, response = guided(as_eps(denoiser, SCHEDULE), jnp.float32(5))(X, ROW, COND, COND)

    np.testing.assert_array_equal(response, 0)
    np.testing.assert_allclose(eps, denoiser(X, jnp.full(3, T), COND), rtol=1e-6)


def test_one_call_on_a_doubled_batch(watched, calls):
    guided(as_eps(watched, SCHEDULE), jnp.float32(5))(X, ROW, UNCOND, COND)

    [(x, t, context)] = calls
    assert x.shape == (6, 4, 5, 4)
    np.testing.assert_array_equal(t, np.full(6, T))
    assert context.shape == (6, 7, 6)


def test_both_evaluations_of_an_image_are_neighbours(watched, calls):
    """So that no device needs the rows of another."""
    guided(as_eps(watched, SCHEDULE), jnp.float32(5))(X, ROW, UNCOND, COND)

    [(x, _, context)] = calls
    np.testing.assert_array_equal(x[::2], X)
    np.testing.assert_array_equal(x[1::2], X)
    np.testing.assert_array_equal(context[::2], UNCOND)
    np.testing.assert_array_equal(context[1::2], COND)


def test_guidance_is_computed_in_float32():
    """The difference of two bfloat16 predictions, many times over, is not rounded."""
    rounded = as_eps(lambda *inputs: denoiser(*inputs).astype(jnp.bfloat16), SCHEDULE)
    eps, response = guided(rounded, jnp.float32(7.3))(X, ROW, UNCOND, COND)

    uncond, cond = (
        denoiser(X, jnp.full(3, T), context).astype(jnp.bfloat16).astype(jnp.float32)
        for context in (UNCOND, COND)
    )
    assert eps.dtype == response.dtype == jnp.float32
    np.testing.assert_allclose(eps, (1 - 7.3) * uncond + 7.3 * cond, rtol=1e-4, atol=1e-5)


def test_contexts_must_fit_the_latents():
    with pytest.raises(Exception, match="b"):
        jax.eval_shape(
            lambda x: guided(as_eps(denoiser, SCHEDULE), jnp.float32(5))(x, ROW, UNCOND, COND),
            X[:2],
        )


@pytest.mark.parametrize("i", [0, 3, 7])
def test_noise_that_v_implies(i):
    """If v is exact, the noise that the latents were mixed with comes back."""
    row = jax.tree.map(lambda column: jnp.asarray(column[i]), ROWS)
    x0, noise = normal((3, 4, 5, 4), 3), normal((3, 4, 5, 4), 4)
    v = row.alpha * noise - row.sigma * x0
    x = row.alpha * x0 + row.sigma * noise

    v_schedule = ScheduleConfig(prediction_type="v_prediction")
    eps = as_eps(lambda x, t, context: v, v_schedule)(x, row, COND)

    np.testing.assert_allclose(eps, noise, atol=1e-5)


def test_noise_is_left_as_it_is():
    eps = as_eps(denoiser, SCHEDULE)(X, ROW, COND)

    np.testing.assert_array_equal(eps, denoiser(X, jnp.full(3, T), COND))


def test_no_model_has_the_shapes_of_a_model():
    found, expected = (
        jax.eval_shape(model, X, ROW, UNCOND, COND)
        for model in (no_model, guided(as_eps(denoiser, SCHEDULE), jnp.float32(5)))
    )
    assert found == expected
