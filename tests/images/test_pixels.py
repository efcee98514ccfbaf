import jax.numpy as jnp
import numpy as np

from fd_jax.images.pixels import to_signed, to_uint8, to_unit

LEVELS = np.arange(256, dtype=np.uint8)


def test_every_level_comes_back():
    np.testing.assert_array_equal(to_uint8(to_unit(to_signed(LEVELS))), LEVELS)
    np.testing.assert_array_equal(
        to_uint8(np.asarray(to_unit(to_signed(jnp.array(LEVELS))))), LEVELS
    )


def test_ends_of_the_ranges():
    assert to_signed(LEVELS)[[0, -1]].tolist() == [-1, 1]
    assert to_unit(np.float32([-3, -1, 0, 1, 3])).tolist() == [0, 0, 0.5, 1, 1]
    assert to_signed(LEVELS).dtype == to_unit(to_signed(LEVELS)).dtype == np.float32
