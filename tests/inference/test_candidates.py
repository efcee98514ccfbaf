"""The best of several candidates is kept, by its faces."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from fd_jax import InputError, assets, read_settings
from fd_jax.data.photographs import load_photograph
from fd_jax.inference import writer
from fd_jax.inference.candidates import CandidateJudge, Score
from fd_jax.inference.pipeline import CompiledSampler

PROMPT = "a man <|image|> in the snow"
TWO = "a man <|image|> and a woman <|image|>"


class Colours:
    """A recognizer of the mean colour of a face."""

    name = description = "colours"

    def __call__(self, image, face):
        x1, y1, x2, y2 = face.box
        colour = image[y1:y2, x1:x2].mean(axis=(0, 1)) - 128
        return (colour / np.linalg.norm(colour)).astype(np.float32)


@pytest.fixture
def brightest(monkeypatch):
    """Takes the brightest candidate for the best. Returns the brightness of all that it saw."""
    seen = []

    class Brightness(CandidateJudge):
        def __call__(self, picture, people, inputs):
            seen.append(float(picture.mean()))
            return Score(True, float(picture.mean()), len(people))

    monkeypatch.setattr(writer, "CandidateJudge", Brightness)
    return seen


def pixels(path):
    return np.asarray(Image.open(path), int)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_the_best_of_a_prompt_is_written(run, people, tmp_path, brightest):
    """It is a picture of the seed like any other, with its own trace."""
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--seed", 3, "--trace", "--output"]
    run(*arguments, tmp_path / "all", "--num-images", 6)
    best = ["--num-images", 2, "--candidates", 3, "--batch-size", 2]
    status, printed, shown = run(*arguments, tmp_path / "best", *best)
    assert status == 0, shown
    assert "made 2 pictures" in printed
    assert len(brightest) == 6
    for i, name in enumerate(("0000", "0001")):
        settings = read_settings(tmp_path / "best" / f"{name}.png")
        group = brightest[3 * i : 3 * i + 3]
        number = 3 * i + int(np.argmax(group))
        assert settings["image_number"] == str(number)
        assert settings["candidates"] == "3"
        assert float(settings["identity"]) == max(group)
        for end in (".png", "_trace.png"):
            found = pixels(tmp_path / "best" / f"{name}{end}")
            expected = pixels(tmp_path / "all" / f"{number:04d}{end}")
            np.testing.assert_allclose(found, expected, atol=1)
    assert "nothing to make" in run(*arguments, tmp_path / "best", *best)[1]
    more = ["--num-images", 2, "--candidates", 4]
    status, _, shown = run(*arguments, tmp_path / "best", *more)
    assert status == 1
    assert "candidates is 3 there and 4 here" in shown


def test_the_others_are_kept_on_request(run, people, tmp_path, brightest):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--candidates", 2, "--output"]
    run(*arguments, tmp_path)
    status, _, shown = run(*arguments, tmp_path, "--keep-candidates")
    assert status == 0, shown
    assert names(tmp_path) == ["0000.png", "candidates/0000_0.png", "candidates/0000_1.png"]
    numbers = [read_settings(tmp_path / name)["image_number"] for name in names(tmp_path)]
    assert numbers == [str(int(np.argmax(brightest[:2]))), "0", "1"]
    assert "nothing to make" in run(*arguments, tmp_path, "--keep-candidates")[1]


def test_lines_of_a_prompt_file(run, people, tmp_path, brightest, monkeypatch):
    """A candidate that is not finite is none; a line with no other fails, alone."""
    lines = [{"prompt": PROMPT, "references": [str(people[0])], "seed": seed} for seed in (1, 2, 3)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    decode = CompiledSampler.decode
    calls = []

    def broken(self, latents):
        decoded = decode(self, latents).copy()
        calls.append(len(decoded))
        decoded[0 if len(calls) == 1 else slice(None)] = np.nan
        return decoded if len(calls) < 3 else decode(self, latents)

    monkeypatch.setattr(CompiledSampler, "decode", broken)
    arguments = ["--prompt-file", file, "--candidates", 2, "--batch-size", 2]
    status, printed, shown = run(*arguments, "--output", tmp_path / "out")
    assert status == 1
    assert "made 2 pictures" in printed
    assert shown.count("line 2: ") == 1
    assert "NaN or infinite" in shown
    found = [read_settings(path)["image_number"] for path in sorted((tmp_path / "out").iterdir())]
    assert found == ["1", str(int(np.argmax(brightest[-2:])))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep-candidates"], "--keep-candidates goes with --candidates"),
        (["--recognizer", "sface.onnx"], "--recognizer goes with --candidates"),
        (["--candidates", 0], "candidates is 0"),
        (["--candidates", 2, "--recognizer", "no.onnx"], "no.onnx does not exist"),
    ],
)
def test_options_that_cannot_be_used(run, people, tmp_path, options, message):
    out = tmp_path / "out"
    status, _, shown = run("--prompt", PROMPT, "--reference", people[0], *options, "--output", out)
    assert status != 0
    assert message in shown
    assert not out.exists()


@pytest.fixture(scope="module")
def portraits():
    return [load_photograph(assets.PEOPLE / name / f"{name}.jpg") for name in ("P005", "P003")]


def side_by_side(*pictures):
    side = min(min(picture.shape[:2]) for picture in pictures)
    parts = [Image.fromarray(picture).resize((side, side)) for picture in pictures]
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


@pytest.mark.parametrize("recognizer", [None, Colours()])
def test_scores(pipe, people, portraits, recognizer):
    """Of P005 and P003: both, in either order; one of them; nobody; one person too many."""
    references = [(people[1],), (people[0],)]
    inputs = pipe.make_inputs([TWO], [references], [""])
    judge = CandidateJudge(pipe, recognizer)

    def score(picture):
        return judge(picture, references, inputs)

    man, woman = portraits
    both = score(side_by_side(man, woman))
    assert (both.is_count_right, both.num_faces) == (True, 2)
    assert both.identity > 0.8
    assert score(side_by_side(woman, man)).identity > 0.8
    assert score(man) == Score(False, 0.0, 1)
    assert score(np.zeros((64, 64, 3), np.uint8)) == Score(False, 0.0, 0)
    crowd = score(side_by_side(man, woman, man))
    assert (crowd.is_count_right, crowd.num_faces) == (False, 3)
    assert both > crowd > score(man)


def test_several_photographs_of_a_person(pipe, people):
    references = [(people[0], people[1])]
    inputs = pipe.make_inputs([PROMPT], [references], [""])
    recognizer = Colours()
    score = CandidateJudge(pipe, recognizer)(load_photograph(people[0]), references, inputs)
    assert score.num_faces == 1
    alone = CandidateJudge(pipe, recognizer)(load_photograph(people[0]), [(people[0],)], inputs)
    assert 0 < score.identity < alone.identity


def test_a_photograph_without_a_face_is_named_before_anything_is_sampled(
    run, people, tmp_path, monkeypatch
):
    """Once, and of a prompt file that line alone."""
    wall = tmp_path / "wall.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(wall)
    monkeypatch.setattr(writer, "load_recognizer", lambda path: Colours())
    lines = [{"prompt": PROMPT, "references": [str(path)]} for path in (wall, people[0])]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    options = ["--candidates", 2, "--recognizer", "x.onnx", "--output", tmp_path / "out"]
    status, _, shown = run("--prompt", PROMPT, "--reference", wall, *options)
    assert status == 1
    assert shown.count("no face in the photograph") == 1
    assert not names(tmp_path / "out")
    status, printed, shown = run("--prompt-file", file, *options)
    assert status == 1
    assert shown.count("line 1: there is no face in the photograph") == 1
    assert "made 1 pictures" in printed


def test_a_photograph_without_a_face_is_named(pipe, people, tmp_path):
    path = tmp_path / "wall.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    references: list[tuple[pathlib.Path, ...]] = [(path,)]
    inputs = pipe.make_inputs([PROMPT], [references], [""], crop_references=False)
    with pytest.raises(InputError, match=r"wall\.png"):
        CandidateJudge(pipe, Colours())(load_photograph(people[0]), references, inputs)
