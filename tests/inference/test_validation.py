"""Arguments of other types: taken where that is natural, refused by what they are elsewhere."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fd_jax.data.photographs import PhotographError, load_photograph, photographs_in
from fd_jax.errors import InputError
from fd_jax.inference.validation import as_list, check_latents, one_each, whole
from fd_jax.inference.validation import prompts_and_references as lists

ONE, PAIR = "a man <|image|>", ["a man <|image|>", "a woman <|image|>"]


def photographs(path, file):
    """The same photograph in many types."""
    pixels = np.array(Image.open(path))
    data = path.read_bytes()
    return {
        "path": path,
        "text": str(path),
        "array": pixels,
        "JAX array": jnp.asarray(pixels),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "open file": file,
    }


def test_a_photograph_of_any_type_is_one(people):
    expected = np.array(Image.open(people[0]))
    with people[0].open("rb") as file, Image.open(people[0]) as image:
        for photograph in [*photographs(people[0], file).values(), image]:
            _, [[found]] = lists(ONE, photograph)
            np.testing.assert_array_equal(load_photograph(found), expected)


def test_photographs_come_in_any_order_of_things(people):
    array = np.array(Image.open(people[0]))
    for many in (people, tuple(people), iter(people), (path for path in people)):
        assert lists("two people", many) == (["two people"], [people])
    for many in ([array, array], (x for x in (array, array)), iter([jnp.asarray(array)] * 2)):
        _, [found] = lists("two people", many)
        assert len(found) == 2
    assert lists(ONE, None) == lists(ONE, ()) == ([ONE], [[]])
    assert lists(PAIR, None) == (PAIR, [[], []])


def test_prompts_come_in_any_order_of_things(people):
    references = [people[:1], people[1:2]]
    for prompts in (PAIR, tuple(PAIR), iter(PAIR), np.array(PAIR), (p for p in PAIR)):
        assert lists(prompts, references) == (PAIR, references)
    assert lists(PAIR, (iter(row) for row in references)) == (PAIR, references)


@pytest.mark.parametrize(
    ("prompts", "references", "message"),
    [
        (b"a man", (), "prompts is a bytes, expected a list of strings"),
        (3, (), "prompts is a int, expected a list of strings"),
        ({"a": 1}, (), "prompts is a dict"),
        ([b"a man"], (), "prompt 0 is a bytes, expected a string"),
        (["a man", None], (), "prompt 1 is a NoneType, expected a string"),
        (ONE, 3, "references is a int, expected a list of photographs"),
        (ONE, {"man": "man.jpg"}, "references is a dict"),
        (ONE, {"man.jpg"}, "references is a set"),
        (PAIR, "man.jpg", "references for 2 prompts are a str, expected 2 lists"),
        (PAIR, b"123", "references for 2 prompts are a bytes, expected 2 lists"),
        (PAIR, jnp.zeros((2, 8, 8, 3)), r"are a \w+ of shape \(2, 8, 8, 3\), expected 2 lists"),
        (PAIR, ["a.jpg", "b.jpg"], "references of a prompt are a str, expected a list"),
        (PAIR, [io.BytesIO(), io.BytesIO()], "references of a prompt are a BytesIO"),
        (PAIR, [np.zeros((8, 8, 3))] * 2, "references of a prompt are a ndarray of shape"),
        (PAIR, [[]], "references for 2 prompts are 1, expected 2 lists"),
        (ONE, [[]], "references: entry 0 is an empty list, expected a photograph"),
        (ONE, ["a.jpg", [["b.jpg"]]], "references: entry 1 is a list of other things, expected"),
        (PAIR, [["a.jpg"], [3]], "references of a prompt: entry 0 is a int, expected a list"),
    ],
)
def test_what_is_no_list_of_photographs_is_named(prompts, references, message):
    with pytest.raises(InputError, match=message):
        lists(prompts, references)


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_bytes_that_are_no_photograph_are_refused(data):
    for source in (data, io.BytesIO(data)):
        with pytest.raises(PhotographError, match="photograph"):
            load_photograph(source)


def test_values_of_each_prompt():
    expected = [3, 4]
    for values in (
        [3, 4],
        (3, 4),
        range(3, 5),
        np.array([3, 4]),
        jnp.array([3, 4]),
        (x for x in (3, 4)),
    ):
        found = [whole("seed", value, 0) for value in one_each("seed", values, 2)]
        assert found == expected
        assert all(type(value) is int for value in found)
    for value in (3, np.int64(3), jnp.int32(3), np.array(3)):
        assert [whole("seed", x) for x in one_each("seed", value, 2)] == [3, 3]
    assert one_each("negative_prompt", "blurry", 2) == ["blurry", "blurry"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2, 3], "seed has 3 values, expected one or 2"),
        (jnp.arange(3), "seed has 3 values, expected one or 2"),
        ({1: 2, 3: 4}, "seed is a dict, expected a list"),
        ("1", "seed is '1', expected a whole number"),
        (1.5, "seed is 1.5, expected a whole number"),
        (None, "seed is None, expected a whole number"),
        (jnp.float32(1.5), "expected a whole number"),
        (True, "seed is True, expected a whole number"),
    ],
)
def test_seeds_that_are_none_are_named(value, message):
    with pytest.raises(InputError, match=message):
        [whole("seed", x) for x in one_each("seed", value, 2)]


@pytest.mark.parametrize("latents", ["noise", {"a": 1}, [[1, 2], [3]], np.zeros((1, 8, 8, 3))])
def test_latents_that_are_none_are_named(latents):
    with pytest.raises(InputError, match="latents"):
        check_latents(latents, (1, 8, 8, 4))


def test_long_values_are_cut_in_messages():
    with pytest.raises(InputError) as caught:
        whole("seed", "1" * 10_000)
    assert len(str(caught.value)) < 200
    with pytest.raises(InputError, match="photographs is a str, expected a list of photographs"):
        as_list("photographs", "man.jpg", "photographs")


def test_photographs_of_a_folder(people, tmp_path):
    for name in ("b.png", "a.JPEG", "c.webp", "d.txt", ".hidden"):
        (tmp_path / name).touch()
    assert [path.name for path in photographs_in(tmp_path)] == ["a.JPEG", "b.png", "c.webp"]
    assert photographs_in(people[0]) == [people[0]]
