import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.losses.localization import localization_loss

MASKS = np.zeros((1, 2, 8, 8), np.float32)
MASKS[0, 0, :, :4] = 1  # the left half
INDEX = jnp.array([[3, 0]])
HAS = jnp.array([[True, False]])


def attention(inside: float, outside: float, *, side: int = 4, heads: int = 2) -> jnp.ndarray:
    """Attention to token 3, by where the pixel is; whatever to the others."""
    probs = np.random.default_rng(0).uniform(size=(1, heads, side * side, 5)).astype(np.float32)
    columns = np.tile(np.arange(side) < side // 2, side)
    probs[..., 3] = np.where(columns, inside, outside)
    return jnp.array(probs)


def loss(maps, masks=MASKS, index=INDEX, has=HAS):
    return localization_loss(maps, jnp.array(masks), index, has)


@pytest.mark.parametrize(("inside", "outside"), [(1.0, 0.0), (0.0, 1.0), (0.25, 0.25)])
def test_it_is_attention_outside_minus_inside(inside, outside):
    maps = {"a": attention(inside, outside, side=8)}
    np.testing.assert_allclose(loss(maps), [outside - inside], atol=1e-4)


def test_layers_count_alike_whatever_their_size():
    small, large = attention(0.5, 0.125), attention(0.25, 1.0, side=8, heads=3)
    apart = loss({"a": small}) + loss({"b": large})
    np.testing.assert_allclose(loss({"a": small, "b": large}), apart / 2, rtol=1e-5)
    assert loss({"a": small})[0] < -0.3


def test_absent_subjects_change_nothing():
    masks, index = MASKS.copy(), jnp.array([[3, 1]])
    masks[0, 1, 2:] = 1
    maps = {"a": attention(0.5, 0.25)}
    np.testing.assert_array_equal(loss(maps), loss(maps, masks=masks, index=index))


def test_a_sample_without_subjects_has_no_loss():
    maps = {"a": attention(0.5, 0.25)}
    np.testing.assert_array_equal(loss(maps, has=jnp.array([[False, False]])), [0.0])


def test_subjects_are_averaged():
    masks, index = MASKS.copy(), jnp.array([[3, 3]])
    masks[0, 1] = 1 - masks[0, 0]  # the right half, attended to by the same token
    maps = {"a": attention(0.5, 0.25)}
    both = loss(maps, masks=masks, index=index, has=jnp.array([[True, True]]))
    np.testing.assert_allclose(both, [0.0], atol=1e-4)
