import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.conditioning.subject_fusion import SubjectFusion
from tests.helpers.modules import build, normal

TEXT, SUBJECTS = normal((2, 7, 6)), normal((2, 3, 6), 1)
INDEX = jnp.array([[1, 4, 0], [5, 2, 3]])
PRESENT = jnp.array([[True, True, False], [True, False, False]])

fuse = jax.jit(lambda fusion, *arrays: fusion(*arrays))


@pytest.fixture(scope="module")
def fusion():
    return build(SubjectFusion, 6)


def changed_tokens(a, b):
    return {tuple(place) for place in np.argwhere(np.any(np.asarray(a != b), axis=-1)).tolist()}


def test_only_tokens_of_present_subjects_change(fusion):
    augmented = fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT)

    assert augmented.shape == TEXT.shape
    assert changed_tokens(augmented, TEXT) == {(0, 1), (0, 4), (1, 5)}


@pytest.mark.parametrize("elsewhere", [1, 4, 6])
def test_absent_subjects_change_nothing(fusion, elsewhere):
    """Not even where their index is that of a present subject, or their pixels are not black."""
    index, subjects = INDEX.at[0, 2].set(elsewhere), SUBJECTS.at[0, 2].add(1.0)

    np.testing.assert_array_equal(
        fuse(fusion, TEXT, subjects, index, PRESENT), fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT)
    )


def test_without_subjects_the_text_stays(fusion):
    augmented = fuse(fusion, TEXT, SUBJECTS, INDEX, jnp.zeros((2, 3), bool))

    np.testing.assert_array_equal(augmented, TEXT)


def test_subjects_do_not_mix(fusion):
    before = fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT)
    after = fuse(fusion, TEXT, SUBJECTS.at[0, 1].add(1.0), INDEX, PRESENT)

    assert changed_tokens(before, after) == {(0, 4)}


def test_words_do_not_mix(fusion):
    """A subject is fused with its own word alone."""
    before = fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT)
    after = fuse(fusion, TEXT.at[0, 4].add(1.0), SUBJECTS, INDEX, PRESENT)

    assert changed_tokens(before, after) == {(0, 4)}


def test_the_order_of_subjects_does_not_matter(fusion):
    """As long as each keeps its word."""
    order = np.array([2, 0, 1])

    np.testing.assert_allclose(
        fuse(fusion, TEXT, SUBJECTS[:, order], INDEX[:, order], PRESENT[:, order]),
        fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT),
        rtol=1e-5,
        atol=1e-6,
    )


def test_subjects_that_change_places_change_the_words(fusion):
    before = fuse(fusion, TEXT, SUBJECTS, INDEX, PRESENT)
    after = fuse(fusion, TEXT, SUBJECTS[:, np.array([1, 0, 2])], INDEX, PRESENT)

    assert changed_tokens(before, after) == {(0, 1), (0, 4), (1, 5)}


def test_gradients_reach_the_present_subjects_alone(fusion):
    def loss(text, subjects):
        return jnp.square(fusion(text, subjects, INDEX, PRESENT)).sum()

    text, subjects = jax.jit(jax.grad(loss, argnums=(0, 1)))(TEXT, SUBJECTS)

    np.testing.assert_array_equal(jnp.any(subjects != 0, axis=-1), PRESENT)
    np.testing.assert_allclose(text[1, 6], 2 * TEXT[1, 6])
    assert np.isfinite(text).all()


def test_dtype_of_the_text_is_kept():
    low = build(SubjectFusion, 6, dtype=jnp.bfloat16)
    high = build(SubjectFusion, 6)
    text = TEXT.astype(jnp.bfloat16)

    augmented = fuse(low, text, SUBJECTS, INDEX, PRESENT)

    assert augmented.dtype == jnp.bfloat16
    want = fuse(high, TEXT, SUBJECTS, INDEX, PRESENT)
    np.testing.assert_allclose(augmented.astype(jnp.float32), want, atol=0.1)
