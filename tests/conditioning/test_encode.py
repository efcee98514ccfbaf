import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fd_jax.architecture import CLIPTextConfig, CLIPVisionConfig
from fd_jax.conditioning.clip_text import TextEncoder
from fd_jax.conditioning.clip_vision import ImageEncoder
from fd_jax.conditioning.encode import embed_subjects, encode
from fd_jax.conditioning.subject_fusion import SubjectFusion
from tests.helpers.modules import build, normal

TEXT = CLIPTextConfig(
    hidden_size=6, intermediate_size=8, num_layers=1, num_heads=2, vocab_size=40, max_length=5
)
VISION = CLIPVisionConfig(
    hidden_size=10,
    intermediate_size=14,
    num_layers=1,
    num_heads=2,
    image_size=8,
    patch_size=4,
    projection_dim=6,
)
REQUESTS = {
    "input_ids": jnp.array([[38, 1, 2, 3, 39], [38, 4, 5, 6, 39], [38, 7, 8, 9, 39]]),
    "null_ids": jnp.array([[38, 39, 39, 39, 39]] * 2 + [[38, 9, 9, 9, 39]]),
    "pixels": jax.nn.sigmoid(normal((3, 2, 9, 9, 3))),
    "index": jnp.array([[1, 3], [2, 0], [0, 0]]),
    "has_subject": jnp.array([[True, True], [True, False], [False, False]]),
}
NULL, PROMPT, AUGMENTED = range(3)


@pytest.fixture(scope="module")
def networks():
    return build(TextEncoder, TEXT), build(ImageEncoder, VISION), build(SubjectFusion, 6)


run = jax.jit(lambda networks, requests: encode(*networks, **requests))


def test_three_contexts(networks):
    """Both prompts as the text encoder has them alone, and the prompt with its subjects."""
    contexts = run(networks, REQUESTS)

    assert contexts.shape == (3, 3, 5, 6)
    alone = jax.jit(lambda networks, tokens: networks[0](tokens))
    for which, name in ((NULL, "null_ids"), (PROMPT, "input_ids")):
        np.testing.assert_allclose(contexts[which], alone(networks, REQUESTS[name]), atol=1e-5)
    changed = jnp.any(contexts[AUGMENTED] != contexts[PROMPT], axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 1], [0, 3], [1, 2]]


def test_subjects_change_the_augmented_context_alone(networks):
    darker = REQUESTS | {"pixels": REQUESTS["pixels"] / 2}

    before, after = run(networks, REQUESTS), run(networks, darker)

    np.testing.assert_array_equal(before[NULL], after[NULL])
    np.testing.assert_array_equal(before[PROMPT], after[PROMPT])
    moved = jnp.abs(before[AUGMENTED] - after[AUGMENTED]).max(axis=-1)
    assert np.argwhere(moved > 0).tolist() == [[0, 1], [0, 3], [1, 2]]


def test_the_negative_prompt_changes_its_context_alone(networks):
    before = run(networks, REQUESTS)
    after = run(networks, REQUESTS | {"null_ids": REQUESTS["input_ids"]})

    np.testing.assert_array_equal(before[1:], after[1:])
    np.testing.assert_allclose(after[NULL], after[PROMPT], atol=1e-5)


def test_images_do_not_mix(networks):
    """Each image has the contexts of its own row of everything."""
    order = np.array([2, 0, 1])

    contexts = run(networks, jax.tree.map(lambda column: column[order], REQUESTS))

    np.testing.assert_allclose(contexts, run(networks, REQUESTS)[:, order], atol=1e-5)


def test_photographs_of_a_subject_are_averaged(networks):
    """By their weights; those without weight change nothing."""
    pixels = np.concatenate([REQUESTS["pixels"], REQUESTS["pixels"][:, ::-1]], axis=1)
    weights = np.array([[[0.25, 0.75], [1, 0]]] * 3, np.float32)
    embed = jax.jit(lambda networks, *inputs: embed_subjects(networks[1], *inputs))

    found, single = embed(networks, pixels, weights), embed(networks, pixels)

    expected = 0.25 * single[:, 0] + 0.75 * single[:, 1], single[:, 2]
    np.testing.assert_allclose(found, np.stack(expected, axis=1), atol=1e-5)


def test_photographs_keep_their_subject(networks):
    embeds = jax.jit(lambda networks, pixels: embed_subjects(networks[1], pixels))(
        networks, REQUESTS["pixels"]
    )

    assert embeds.shape == (3, 2, 6)
    alone = jax.jit(lambda networks, pixels: networks[1](pixels))
    for s in range(2):
        np.testing.assert_allclose(
            embeds[:, s], alone(networks, REQUESTS["pixels"][:, s]), rtol=1e-4, atol=1e-5
        )
