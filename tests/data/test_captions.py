import inspect
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fd_jax.data.captions import (
    SUBJECT_MARKER,
    PromptError,
    load_tokenizer,
    mark_subjects,
    strip_markers,
    tokenize,
    tokenize_pieces,
)

ROOT = Path(__file__).parents[2]
GOLDENS = Path(os.environ.get("FD_GOLDENS") or ROOT / "tests" / "goldens")
ASSETS = ROOT / "fd_jax" / "assets" / "tokenizer"

PROMPTS = [
    "",
    " \t\n",
    "a photo of a woman",
    "a man <|image|> and a woman <|image|> reading a book",
    "a man<|image|>and a woman<|image|>",
    "  a   man   <|image|>   ,  <|image|> \n a dog\u3000<|image|>",
    "A MAN'S<|image|>'s hat, THE WOMAN!<|image|>? 123<|image|>456",
    "photosynthesis<|image|>photosynthesizing wom<|image|>an",
    "une fille a\u0300 co\u0302te\u0301 <|image|> d'un gar\u00e7on <|image|>",
    "e<|image|>\u0301 a combining accent after the marker",
    "\u5973\u4eba<|image|>\u548c\u7537\u4eba<|image|>",
    "\U0001f600\U0001f468\u200d\U0001f469 <|image|>",
    "A&amp;B <|image|> \uff21\ufb01 <|image|> \x1c\x85 \x00 <|image|>",
    "<|startoftext|> a man <|image|> <|endoftext|> <|image|> <|image| <image> |>",
    "<|image<|image|>|> nested",
    "...<|image|>!!!<|image|>---<|image|>'''<|image|>",
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ASSETS)


@pytest.fixture(scope="module")
def marking_tokenizer():
    """The released way: the marker is a special token of the tokenizer."""
    tokenizer = load_tokenizer(ASSETS)
    tokenizer.add_tokens([SUBJECT_MARKER], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize("name", ["a[0] *?", "{x} %s", os.fsdecode(b"\xff\xe9")])
def test_a_tokenizer_may_be_in_a_folder_of_any_name(tmp_path, name):
    (tmp_path / name).symlink_to(ASSETS)
    load_tokenizer(tmp_path / name)


def released_tokens(marking_tokenizer, prompt):
    marker = marking_tokenizer.convert_tokens_to_ids(SUBJECT_MARKER)
    ids, marked = [], []
    for token in marking_tokenizer.encode(prompt, verbose=False):
        if token == marker:
            marked.append(len(ids) - 1)
        else:
            ids.append(token)
    return ids, marked


@pytest.mark.golden
@pytest.mark.parametrize("name", ["sample_ddim", "sample_ddim_one", "sample_pndm"])
def test_prompts_equal_the_released_code(tokenizer, name):
    with np.load(GOLDENS / f"{name}.npz") as golden:
        caption = tokenize(tokenizer, str(golden["prompt"]))
        np.testing.assert_array_equal(caption.input_ids, golden["input_ids"][0])
        np.testing.assert_array_equal(caption.subject_token_mask, golden["image_token_mask"][0])
        assert caption.num_subjects == golden["object_pixel_values"].shape[1]


@pytest.mark.golden
def test_captions_equal_the_released_code(tokenizer):
    folder = GOLDENS / "dataset" / "ffhq"
    names = (folder / "image_ids.txt").read_text().split()
    with np.load(GOLDENS / "dataset" / "dataset.npz") as golden:
        for i, name in enumerate(names):
            info = json.loads((folder / name[:5] / f"{name}.json").read_text())
            persons = [s for s in info["segments"] if s["coco_label"] == "person"]
            ends = sorted(person["end"] for person in persons)
            caption = tokenize(tokenizer, mark_subjects(info["caption"], ends))
            for ours, theirs in {
                "input_ids": "input_ids",
                "subject_token_mask": "image_token_mask",
                "subject_token_index": "image_token_idx",
                "has_subject": "image_token_idx_mask",
            }.items():
                np.testing.assert_array_equal(getattr(caption, ours), golden[f"{i}:{theirs}"][0])
            assert caption.num_subjects == golden[f"{i}:num_objects"]


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_splitting_equals_a_marker_token(tokenizer, marking_tokenizer, prompt):
    ids, marked = released_tokens(marking_tokenizer, prompt)
    caption = tokenize_pieces(tokenizer, prompt.split(SUBJECT_MARKER))
    assert caption.input_ids[: len(ids)].tolist() == ids
    assert (caption.input_ids[len(ids) :] == tokenizer.pad_token_id).all()
    assert caption.subject_token_index.tolist() == marked + [0] * (4 - len(marked))
    assert np.flatnonzero(caption.subject_token_mask).tolist() == marked
    assert caption.has_subject.tolist() == [i < len(marked) for i in range(4)]
    assert caption.num_subjects == len(marked)
    assert caption.lost == ""


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_stripped_prompts_keep_their_tokens(tokenizer, prompt):
    stripped = tokenize(tokenizer, strip_markers(prompt))
    assert stripped.num_subjects == 0
    expected = tokenize_pieces(tokenizer, prompt.split(SUBJECT_MARKER))
    np.testing.assert_array_equal(stripped.input_ids, expected.input_ids)


def test_stripped_prompts_read_well():
    assert strip_markers("a man <|image|> and a woman <|image|>") == "a man and a woman"


def test_types(tokenizer):
    caption = tokenize(tokenizer, "a man <|image|>")
    assert [array.shape for array in caption[:4]] == [(77,), (77,), (4,), (4,)]
    assert [array.dtype for array in caption[:4]] == [np.int32, bool, np.int32, bool]


@pytest.mark.parametrize("words", [73, 74, 75])
def test_what_fits_is_whole(tokenizer, words):
    caption = tokenize(tokenizer, "cat " * (words - 1) + "man <|image|>")
    assert caption.lost == ""
    assert caption.subject_token_index[0] == words
    assert caption.input_ids[words + 1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("rest", "lost"),
    [
        ("cat and a dog,  asleep ", "a dog,  asleep"),
        ("cat, dog", "dog"),
        ("the photosynthesis of a leaf", "photosynthesis of a leaf"),  # two tokens, one inside
        ("\u0130 \U0001f600 \u00e9\t<|endoftext|> ", "\U0001f600 \u00e9\t<|endoftext|>"),
    ],
)
def test_words_that_do_not_fit_are_named(tokenizer, rest, lost):
    prompt = "a man <|image|> " + "cat " * 71 + rest
    caption = tokenize(tokenizer, prompt)
    assert caption.lost == lost
    assert caption.input_ids[76] == tokenizer.eos_token_id
    assert caption.subject_token_index.tolist() == [2, 0, 0, 0]
    kept = tokenize(tokenizer, prompt.rstrip().removesuffix(lost))
    assert kept.lost == ""


def test_a_lost_subject_is_refused(tokenizer):
    with pytest.raises(PromptError, match=r"word of marker 2 of 2.* is token 76 .*expected 75"):
        tokenize(tokenizer, "a man <|image|> " + "cat " * 73 + "woman <|image|>")
    assert tokenize(tokenizer, "a man <|image|> " + "cat " * 72 + "woman <|image|> here").lost


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("man <|image|> " * 5, "5 markers <|image|>, expected at most 4"),
        ("<|image|> a man", "marker 1 of 1 (character 0) has no word"),
        (" \n<|image|> a man", "marker 1 of 1 (character 2) has no word"),
        ("a man <|image|> <|image|>", "marker 2 of 2 (character 16) has no word"),
        ("a man <|Image|>", "found <|Image|> at character 6, expected <|image|>"),
        ("a man <|image|> and <|IMAGE|>", "found <|IMAGE|> at character 20"),
        ("a man \udce9", "not valid text"),
    ],
)
def test_prompts_that_bind_nothing_are_refused(tokenizer, prompt, message):
    with pytest.raises(PromptError) as caught:
        tokenize(tokenizer, prompt)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "sign"),
    [
        ("a man, <|image|> at the beach", "','"),
        ("a photo of a man. <|image|>", "'.'"),
        ("(a man:1.3) <|image|> in snow", "')'"),
        ('a "man" <|image|>', "'\"'"),
        ("a \u201cman\u201d<|image|>", "'\u201d'"),
        ("a man (smiling) <|image|>", "')'"),
        ("a man -- <|image|>", "'-'"),
        ("a man\u2026 <|image|>", "'\u2026'"),
        ("a man's <|image|> dog", '"\'s"'),
        ("a man + <|image|>", "'+'"),
        ("<b>a man</b> <|image|>", "'>'"),
        ("a man\u200b <|image|>", "an invisible character (U+200B)"),
        ("a man <|image|> <|endoftext|> <|image|>", "'>'"),
        ("a man <|image|>, <|image|>", "','"),
        ("\u7537\u4eba\uff0c<|image|>", "'\uff0c'"),
    ],
)
def test_a_marker_after_a_sign_is_refused(tokenizer, prompt, sign):
    count = prompt.count(SUBJECT_MARKER)
    with pytest.raises(PromptError) as caught:
        tokenize(tokenizer, prompt)
    assert f"marker {count} of {count} " in str(caught.value)
    assert f"follows {sign}, not a word" in str(caught.value)
    assert "expected the marker directly after the noun" in str(caught.value)


@pytest.mark.parametrize(
    "prompt",
    [
        "a man<|image|>, and a woman<|image|>.",
        "A MAN <|image|>",
        "agent 47 <|image|>",
        "une fille \u00e9l\u00e9gante <|image|>",
        "\u5973\u4eba<|image|>\u548c\u7537\u4eba<|image|>",
        "\U0001f468\u200d\U0001f469 <|image|>",
        "\U0001f468\U0001f3fd <|image|>",  # with a tone of skin
        '(a man <|image|>), "a woman <|image|>" at 10:30 (16:9)',
        "a well-dressed man <|image|>",
    ],
)
def test_a_marker_after_a_word_is_taken(tokenizer, prompt):
    assert tokenize(tokenizer, prompt).num_subjects == prompt.count(SUBJECT_MARKER)


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("a (man <|image|>:1.3) in snow", "(man <|image|>:1.3)"),
        ("a man <|image|> in ((snow))", "((snow))"),
        ("a man <|image|> in [[snow]]", "[[snow]]"),
        ("a man <|image|> in snow++", "w++"),
        ("a man <|image|> in (snow)1.5", ")1.5"),
        ("a man, (snow: .7)", "(snow: .7)"),
    ],
)
def test_prompt_weights_are_found(tokenizer, prompt, weight):
    assert tokenize(tokenizer, prompt).weight == weight


def test_a_prompt_is_text(tokenizer):
    unchecked = inspect.unwrap(tokenize)  # without the type checks of the tests
    with pytest.raises(PromptError, match="expected the prompt to be a str, got list"):
        unchecked(tokenizer, ["a man"])


def test_mark_subjects():
    assert mark_subjects("a boy, a girl", [5, 13]) == "a boy<|image|>, a girl<|image|>"
    assert mark_subjects("a boy", []) == "a boy"


@pytest.mark.parametrize("ends", [[5, 5], [13, 5], [0], [14], [-1]])
def test_impossible_noun_phrases_are_refused(ends):
    with pytest.raises(PromptError, match="expected rising offsets from 1 to 13"):
        mark_subjects("a boy, a girl", ends)


def test_captions_with_markers_are_not_marked_again():
    with pytest.raises(PromptError, match="without"):
        mark_subjects("a boy <|image|>", [5])


def test_missing_tokenizers_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"lacks vocab.json and merges.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vocab.json", '{"a": ', "is damaged"),
        ("vocab.json", "[1, 2]", "vocab.json is a list"),
        ("vocab.json", '{"a": 0, "b": 1, "<|endoftext|>": 2}', "no merge of two tokens"),
        ("merges.txt", "version https://git-lfs.github.com/spec/v1\n", "no merge of two tokens"),
        ("merges.txt", "#version: 0.2\ni n\nt h\n", "2 merges in merges.txt, expected 48894"),
        ("tokenizer_config.json", "{", "no readable CLIP tokenizer"),
        ("tokenizer.json", "{}", "no readable CLIP tokenizer"),
    ],
)
def test_damaged_tokenizers_are_refused(tmp_path, name, text, message):
    shutil.copytree(ASSETS, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_saved_by_transformers_loads(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    prompt = "a man <|image|> in the snow"
    for ours, theirs in zip(
        tokenize(load_tokenizer(tmp_path), prompt), tokenize(tokenizer, prompt), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
