import numpy as np
import pytest

from fd_jax.data.config import DataConfig
from fd_jax.data.crops import load_backdrop, portrait, subject_crops
from fd_jax.data.examples import make_example
from fd_jax.data.ffhq.record import DataError, Record, Segment, read_info
from fd_jax.demo.painters import backdrop
from fd_jax.errors import InputError
from tests.helpers.ffhq_items import WORDS, encoded, item, person

BACKDROP = "fd_jax.demo.painters:backdrop"
CONFIG = DataConfig(resolution=16, subject_resolution=8)


def record(content, index=5):
    files = encoded(content)
    caption, segments = read_info(files[".json"], "x")
    return Record(index, "some_id", files[".jpg"], files[".npy"], caption, segments)


@pytest.fixture
def make(tokenizer):
    def make(content, *, seed=0, training=False, background=None, **changes):
        names = ("resolution", "subject_resolution")
        config = DataConfig(**{name: getattr(CONFIG, name) for name in names} | changes)
        rng = np.random.default_rng(seed)
        return make_example(
            record(content),
            config,
            tokenizer,
            rng,
            training=training,
            background=background,
            backdrop=load_backdrop(BACKDROP),
        )

    return make


def words(tokenizer, example):
    """The word at each subject's token."""
    tokens = example.input_ids[example.subject_token_index[example.has_subject]]
    return [tokenizer.decode([token]).strip() for token in tokens]


def test_shapes_and_types(make):
    example = make(item(2), training=True)

    shapes = [(array.shape, array.dtype.name) for array in example if array is not None]
    assert shapes == [
        ((16, 16, 3), "uint8"),
        ((16, 16), "uint8"),
        ((4, 8, 8, 3), "uint8"),
        ((4,), "uint8"),
        ((77,), "int32"),
        ((4,), "int32"),
        ((4,), "bool"),
        ((), "int32"),
    ]
    assert example.index == 5


def test_each_subject_has_its_word_and_its_segment(make, tokenizer):
    example = make(item(3, width=32))

    assert words(tokenizer, example) == ["man", "woman", "boy"]
    np.testing.assert_array_equal(example.subject_ids, [1, 2, 3, 0])
    np.testing.assert_array_equal(example.has_subject, [True, True, True, False])
    assert set(np.unique(example.segment_map)) == {0, 1, 2, 3}
    assert example.subject_pixels[:3].reshape(3, -1).any(axis=1).all()
    assert example.subject_pixels[3].max() == 0
    caption = tokenizer(", ".join(WORDS)).input_ids
    np.testing.assert_array_equal(example.input_ids[: len(caption)], caption)


def test_subjects_come_in_the_order_of_their_words(make, tokenizer):
    content = item(3)
    content["segments"].reverse()

    example = make(content)

    assert words(tokenizer, example) == ["man", "woman", "boy"]
    np.testing.assert_array_equal(example.subject_ids, [1, 2, 3, 0])


def test_other_things_are_no_subjects(make, tokenizer):
    content = item(3)
    content["segments"][1]["coco_label"] = "dog"
    assert words(tokenizer, make(content)) == ["man", "boy"]
    assert words(tokenizer, make(content, object_types=("dog",))) == ["woman"]
    assert words(tokenizer, make(content, object_types=("dog", "person"))) == [
        *("man", "woman", "boy")
    ]


def test_captions_are_dropped_with_all_subjects(make, tokenizer):
    example = make(item(3), training=True, caption_drop_prob=1.0)

    empty = tokenizer("").input_ids
    np.testing.assert_array_equal(example.input_ids[: len(empty)], empty)
    assert set(example.input_ids[len(empty) :]) == {tokenizer.pad_token_id}
    assert not example.has_subject.any()
    for array in (example.subject_pixels, example.subject_ids, example.subject_token_index):
        assert array.max() == 0
    assert example.image.any()


def test_subjects_are_dropped_one_by_one(make):
    content = item(3)
    options = {"training": True, "caption_drop_prob": 0.0, "augment": False}
    none = make(content, subject_keep_prob=0.0, **options)
    assert not none.has_subject.any()
    np.testing.assert_array_equal(none.input_ids, make(content).input_ids)

    some = [make(content, seed=i, subject_keep_prob=0.7, **options) for i in range(150)]
    assert 0.6 < np.mean([example.has_subject.sum() / 3 for example in some]) < 0.8
    kept = {tuple(example.subject_ids[example.has_subject]) for example in some}
    assert len(kept) == 8


def test_how_often_captions_are_dropped(make):
    options = {"training": True, "caption_drop_prob": 0.3, "max_subjects": 0}
    lengths = [len(set(make(item(1), seed=i, **options).input_ids)) for i in range(150)]
    assert 0.2 < np.mean([length == 2 for length in lengths]) < 0.4


def test_at_most_so_many_subjects_chosen_by_chance(make):
    content, options = item(5), {"caption_drop_prob": 0.0, "subject_keep_prob": 1.0}
    kept = [
        make(content, seed=i, training=True, max_subjects=2, augment=False, **options)
        for i in range(60)
    ]

    chosen = {tuple(example.subject_ids) for example in kept}
    assert len(chosen) == 10  # of five two
    assert all(first < second for first, second in chosen)
    assert kept[0].subject_pixels.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(make(content, max_subjects=2).subject_ids, [1, 2])


def test_without_room_for_subjects_only_captions_are_learnt(make):
    content = item(2, segment_map=b"not even looked at")

    example = make(content, max_subjects=0)

    assert example.subject_pixels.shape == (0, 8, 8, 3)
    assert example.has_subject.shape == example.subject_ids.shape == (0,)
    assert example.segment_map.max() == 0
    np.testing.assert_array_equal(example.input_ids, make(item(2)).input_ids)


def test_two_subjects_do_not_share_a_word(make, tokenizer):
    content = item(3)
    content["segments"][1] |= {"start": 0, "end": content["segments"][0]["end"]}

    example = make(content)

    assert words(tokenizer, example) == ["man", "boy"]
    np.testing.assert_array_equal(example.subject_ids, [1, 3, 0, 0])


def test_blanks_are_no_word(make, tokenizer):
    content = item(2, caption="a man  and so on")
    content["segments"][0] |= {"start": 0, "end": 5}
    content["segments"][1] |= {"start": 0, "end": 6}

    assert words(tokenizer, make(content)) == ["man"]


@pytest.mark.parametrize(("blanks", "expected"), [(73, ["man", "woman"]), (74, ["man"])])
def test_subjects_beyond_the_last_token_are_left_out(make, tokenizer, blanks, expected):
    caption = "man" + " so" * blanks + " woman, and a boy"
    content = item(3, caption=caption)
    for segment, word in zip(content["segments"], ("man", "woman", "boy"), strict=True):
        start = caption.rindex(word) if word == "boy" else caption.index(word)
        segment |= {"start": start, "end": start + len(word)}

    example = make(content)

    assert words(tokenizer, example) == expected
    assert example.input_ids[76] == tokenizer.eos_token_id


def test_crops_show_the_segment_before_the_background(make):
    content = item(1)
    background = np.full((40, 60, 3), 7, np.uint8)
    background[4, 0] = 99  # the corner of the box, which is outside of the segment

    pixels = make(content, background=background, subject_resolution=24).subject_pixels[0]

    # The box is 8 x 24, and padded by 8 at both sides.
    assert pixels[:, :8].max() == pixels[:, 16:].max() == 0
    assert (pixels[0, 8] == 99).all()
    assert (pixels[0, 9:16] == 7).all()
    assert (pixels[1:, 8] == 7).all()
    inside = content["image"][5:28, 1:8].astype(int)
    assert np.abs(pixels[1:, 9:16] - inside).mean() < 8  # JPEG is not exact


def test_one_background_lies_behind_all_subjects(make):
    image = np.full((20, 30, 3), 200, np.uint8)
    segment_map = np.zeros((20, 30), np.uint8)
    segment_map[5, 5], segment_map[12, 20] = 1, 2
    boxes = (2, 3, 22, 15), (4, 5, 30, 18)
    subjects = [Segment(i + 1, box, 0, 1, "person") for i, box in enumerate(boxes)]

    first, second = subject_crops(image, segment_map, subjects, "x", np.random.default_rng(0))

    both = first[2:, 2:], second[:10, :18]
    differs = (both[0] != both[1]).any(axis=2)
    assert differs.sum() == 2  # each subject is to be seen in its own crop alone
    assert (first[2, 3], second[7, 16]) == (pytest.approx(200), pytest.approx(200))
    assert len(np.unique(first)) > 200


def test_outside_of_training_only_the_noise_is_random(make):
    content = item(2)
    first, second = make(content, seed=1), make(content, seed=2)
    for name in ("image", "segment_map", "input_ids", "has_subject", "subject_ids"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.subject_pixels != second.subject_pixels).any()

    again = make(content, seed=1)
    np.testing.assert_array_equal(first.subject_pixels, again.subject_pixels)


def test_training_examples_depend_on_the_generator_alone(make):
    first, again, other = (make(item(2), seed=seed, training=True) for seed in (4, 4, 5))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != two).any() for one, two in zip(first, other, strict=True))


def test_images_are_mirrored_with_their_maps(make):
    content, options = item(3), {"training": True, "augment": False}
    plain = make(content)
    seen = set()
    for seed in range(12):
        example = make(content, seed=seed, **options)
        is_mirrored = not np.array_equal(example.image, plain.image)
        seen.add(is_mirrored)
        for name in ("image", "segment_map"):
            expected = getattr(plain, name)
            expected = expected[:, ::-1] if is_mirrored else expected
            np.testing.assert_array_equal(getattr(example, name), expected)
    assert seen == {False, True}

    kept = [make(content, seed=seed, flip=False, **options).image for seed in range(6)]
    assert all(np.array_equal(image, plain.image) for image in kept)


def changed(**changes):
    content = item(2)
    content["segments"][1] |= changes
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (item(image=b"JPEG"), "its image cannot be read"),
        (item(image=encoded(item())[".jpg"][:-300]), "its image cannot be read: .*truncated"),
        (item(width=400, height=39), "400 x 39 pixels, expected sides of 2 to 16384, one at most"),
        (item(segment_map=np.zeros((32, 47), np.uint8)), r"\(32, 47\), expected uint8 .*\(32, 48"),
        (changed(id=9), r"bbox \[8, 4, 16, 28\] of segment 9 holds no pixel of value 9"),
        (changed(id=0), "has the id 0, expected 1..255"),
        (changed(bbox=[8, 4, 8, 28]), r"\[8, 4, 8, 28\], expected 0 <= x1 < x2 <= 48"),
        (changed(bbox=[8, 4, 16, 33]), "y1 < y2 <= 32"),
        (changed(bbox=[-1, 4, 16, 30]), "expected 0 <= x1"),
        (changed(end=99), "characters 7 to 99 of the caption, expected 0 <= start < end <= 36"),
        (changed(start=15), "characters 15 to 14"),
        (item(caption="a man <|image|>"), "expected a caption without"),
    ],
)
def test_broken_items_are_named(make, content, message):
    with pytest.raises(DataError, match=f"^item some_id: .*{message}"):
        make(content)


def test_a_broken_item_fails_whatever_is_drawn(make):
    for seed in range(5):
        with pytest.raises(DataError, match="some_id"):
            make(changed(end=99), seed=seed, training=True, caption_drop_prob=1.0)


def test_the_words_of_the_items_are_where_they_say():
    for i, word in enumerate(WORDS):
        segment = person(i)
        assert ", ".join(WORDS)[segment["start"] : segment["end"]] == word


def test_a_portrait_shows_the_segment_below_and_a_backdrop_around():
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:40, 20:40] = (250, 3, 250)
    segment_map = np.zeros((40, 60), np.uint8)
    segment_map[10:40, 20:40] = 2
    subject = Segment(2, (20, 10, 40, 40), 0, 3, "person")
    sides = []
    for seed in range(8):
        pixels = portrait(image, segment_map, subject, "x", np.random.default_rng(seed), backdrop)
        is_subject = (pixels == (250, 3, 250)).all(axis=-1)
        rows, columns = np.nonzero(is_subject)
        assert is_subject.sum() == 600
        assert rows.max() == len(pixels) - 1
        assert np.ptp(columns) == 19
        sides.append(len(pixels))

    assert min(sides) >= 30
    assert len(set(sides)) > 3
    segment_map[:] = 0
    with pytest.raises(DataError, match="holds no pixel of value 2"):
        portrait(image, segment_map, subject, "x", np.random.default_rng(0), backdrop)


@pytest.mark.parametrize(
    "name", ["", "fd_jax.demo.painters", "fd_jax.nowhere:backdrop", "fd_jax.demo.painters:nothing"]
)
def test_backdrops_that_are_not_there(name):
    with pytest.raises(InputError, match="expected module:function"):
        load_backdrop(name)


def test_portraits_need_a_backdrop():
    with pytest.raises(InputError, match="crops is 'portrait' without a backdrop"):
        DataConfig(crops="portrait")


def test_portraits_are_made_on_demand(make):
    noise, portraits = (
        make(item(1), crops=crops, backdrop=BACKDROP).subject_pixels
        for crops in ("noise", "portrait")
    )

    assert not np.array_equal(noise, portraits)
    assert portraits[0].any()
    assert not portraits[1:].any()
