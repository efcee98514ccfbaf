import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.sampling.guidance import guide
from tests.helpers.modules import normal

X, UNCOND, COND = normal((3, 4, 5, 4)), normal((3, 7, 6), 1), normal((3, 7, 6), 2)
T = jnp.int32(321)


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
    guided, _ = guide(denoiser, X, T, UNCOND, COND, jnp.float32(scale))

    np.testing.assert_allclose(guided, denoiser(X, jnp.full(3, T), context), rtol=1e-5, atol=1e-6)


def test_guidance_goes_on_in_the_same_direction():
    """Guided noise is linear in the scale."""
    at = [guide(denoiser, X, T, UNCOND, COND, jnp.float32(scale))[0] for scale in (0, 1, 7)]

    np.testing.assert_allclose(at[2] - at[0], 7 * (at[1] - at[0]), rtol=1e-4, atol=1e-5)


def test_the_response_is_how_far_guidance_moves():
    guided, response = guide(denoiser, X, T, UNCOND, COND, jnp.float32(5))

    unguided, _ = guide(denoiser, X, T, UNCOND, COND, jnp.float32(0))
    np.testing.assert_allclose(response, guided - unguided, rtol=1e-4, atol=1e-5)


def test_equal_contexts_have_no_response():
    guided, response = guide(denoiser, X, T, COND, COND, jnp.float32(5))

    np.testing.assert_array_equal(response, 0)
    np.testing.assert_allclose(guided, denoiser(X, jnp.full(3, T), COND), rtol=1e-6)


def test_one_call_on_a_doubled_batch(watched, calls):
    guide(watched, X, T, UNCOND, COND, jnp.float32(5))

    [(x, t, context)] = calls
    assert x.shape == (6, 4, 5, 4)
    np.testing.assert_array_equal(t, np.full(6, 321))
    assert context.shape == (6, 7, 6)


def test_both_evaluations_of_an_image_are_neighbours(watched, calls):
    """So that no device needs the rows of another."""
    guide(watched, X, T, UNCOND, COND, jnp.float32(5))

    [(x, _, context)] = calls
    np.testing.assert_array_equal(x[::2], X)
    np.testing.assert_array_equal(x[1::2], X)
    np.testing.assert_array_equal(context[::2], UNCOND)
    np.testing.assert_array_equal(context[1::2], COND)


def test_guidance_is_computed_in_float32():
    """The difference of two bfloat16 predictions, many times over, is not rounded."""
    guided, response = guide(
        lambda *inputs: denoiser(*inputs).astype(jnp.bfloat16), X, T, UNCOND, COND, jnp.float32(7.3)
    )

    uncond, cond = (
        denoiser(X, jnp.full(3, T), context).astype(jnp.bfloat16).astype(jnp.float32)
        for context in (UNCOND, COND)
    )
    assert guided.dtype == response.dtype == jnp.float32
    np.testing.assert_allclose(guided, (1 - 7.3) * uncond + 7.3 * cond, rtol=1e-4, atol=1e-5)


def test_contexts_must_fit_the_latents():
    with pytest.raises(Exception, match="b"):
        jax.eval_shape(lambda x: guide(denoiser, x, T, UNCOND, COND, jnp.float32(5)), X[:2])
