"""Pictures of a prompt and of a prompt file, through the command line, on tiny networks."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fd_jax import assets, read_settings
from fd_jax.data import photographs
from fd_jax.inference import inputs, pipeline, writer

PROMPT = "a man <|image|> in the snow"


def pixels(path):
    return np.array(Image.open(path))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_lines(path, *lines):
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def three_lines(people, tmp_path):
    """A prompt file of three lines, each with a photograph of its own beside it."""
    lines = []
    for name, person in zip("abc", people, strict=False):
        shutil.copy(person, tmp_path / f"{name}.jpg")
        lines.append({"prompt": PROMPT, "references": [f"{name}.jpg"], "output": f"{name}.png"})
    return write_lines(tmp_path / "prompts.jsonl", *lines)


def fail_in_reading(monkeypatch, error):
    def load(path):
        if path.name == "b.jpg":
            raise error
        return photographs.load_photograph(path)

    monkeypatch.setattr(inputs, "load_photograph", load)


def fail_in_sampling(monkeypatch, error):
    sample_batches = pipeline.FaceDiffuser.sample_batches
    mean = photographs.subject_pixels(
        photographs.load_photograph(assets.PEOPLE / "P005" / "P005.jpg"), 28
    )

    def broken(self, inputs, *args, **options):
        if any(np.array_equal(row[0], mean) for row in inputs.subject_pixels):
            raise error
        return sample_batches(self, inputs, *args, **options)

    monkeypatch.setattr(pipeline.FaceDiffuser, "sample_batches", broken)


def fail_in_writing(monkeypatch, error):
    write_png = writer.write_png

    def broken(path, *args, **options):
        if path.name == "b.png":
            raise error
        write_png(path, *args, **options)

    monkeypatch.setattr(writer, "write_png", broken)


def make_nan(monkeypatch, error):
    """The second picture of the batch is not finite."""
    decode = pipeline.CompiledSampler.decode

    def broken(self, latents):
        decoded = decode(self, latents).copy()
        decoded[1] = np.nan
        return decoded

    monkeypatch.setattr(pipeline.CompiledSampler, "decode", broken)


FAILURES = {
    "a decoder's own exception": (fail_in_reading, RuntimeError("decoder has failed")),
    "a file that goes away": (fail_in_reading, FileNotFoundError(2, "No such file")),
    "a file in another encoding": (fail_in_reading, UnicodeDecodeError("ascii", b"x", 0, 1, "no")),
    "sampling": (fail_in_sampling, ZeroDivisionError("sampling has failed")),
    "a full disk": (fail_in_writing, OSError(28, "No space left on device")),
    "a name that cannot be written": (fail_in_writing, ValueError("embedded null byte")),
    "a picture that is not finite": (make_nan, "NaN or infinite"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_line_fails_alone(run, three_lines, tmp_path, monkeypatch, case):
    """With its number; the others are made, and the next run makes what is missing."""
    fail, error = FAILURES[case]
    arguments = "--prompt-file", three_lines, "--output", tmp_path / "out"
    with monkeypatch.context() as patch:
        fail(patch, error)
        status, printed, shown = run(*arguments)
    assert status == 1
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    assert shown.count("line 2: ") == 1
    assert str(error) in shown
    assert ("test_batch.py, line " in shown) == isinstance(error, Exception)  # where it was raised
    assert "line 1:" not in shown
    assert "Traceback" not in shown
    assert "made 2 pictures" in printed
    assert "1 failed" in printed
    status, printed, _ = run(*arguments)
    assert status == 0
    assert "made 1 pictures" in printed
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png", "contact_sheet.png"]


@pytest.mark.parametrize("name", [b"Jos\xe9.jpg", b"\xff\xfe.jpg", b"\x80 \x81.jpg"])
def test_photographs_whose_names_are_not_utf8(run, people, tmp_path, name):
    name = os.fsdecode(name)
    shutil.copy(people[0], tmp_path / name)
    lines = [{"prompt": PROMPT, "references": [name], "output": "a"}]
    file = write_lines(tmp_path / "prompts.jsonl", *lines)
    status, _, shown = run("--prompt-file", file, "--output", tmp_path / "out")
    assert status == 0, shown
    [stored] = json.loads(read_settings(tmp_path / "out" / "a.png")["references"])
    assert stored == os.fsencode(name).decode(errors="backslashreplace")


@pytest.mark.parametrize("name", ["runs[v2]", "a*b? {x}", os.fsdecode(b"\xff")])
def test_models_and_pictures_may_be_in_folders_of_any_name(
    run, checkpoints, people, tmp_path, name
):
    (tmp_path / name).mkdir()
    model = shutil.copy(checkpoints["sdm"], tmp_path / name)
    lines = [{"prompt": PROMPT, "references": [str(people[0])], "output": "a"}]
    file = write_lines(tmp_path / name / "prompts.jsonl", *lines)
    status, _, shown = run(
        "--prompt-file", file, "--output", tmp_path / name / "out", f"--sdm={model}"
    )
    assert status == 0, shown
    stored = read_settings(tmp_path / name / "out" / "a.png")["sdm"]
    assert stored == os.fsencode(model).decode(errors="backslashreplace")


def test_words_that_are_lost_are_warned_of_once_with_the_line(run, people, tmp_path):
    lines = [
        {"prompt": PROMPT + " very" * 80 + f" {word}", "references": [str(people[0])]}
        for word in ("one", "two")
    ]
    lines.insert(1, {"prompt": PROMPT, "references": [str(people[0])]})
    file = write_lines(tmp_path / "prompts.jsonl", *lines)
    status, _, shown = run("--prompt-file", file, "--output", tmp_path / "out")
    assert status == 0
    told = [line for line in shown.replace("\r", "\n").split("\n") if "lost is" in line]
    assert len(told) == 2
    assert told[0].startswith("warning: line 1: ")
    assert told[1].startswith("warning: line 3: ")


def test_pictures_are_written_as_they_are_made(run, people, tmp_path, monkeypatch):
    """What an interrupted run has made is kept; the same command makes the rest of it."""
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--num-images", 5, "--trace"]
    arguments += ["--batch-size", 2, "--seed", 7, "--output"]
    assert run(*arguments, tmp_path / "whole")[0] == 0
    assert len(names(tmp_path / "whole")) == 11

    write, out = writer.PictureWriter.write, tmp_path / "cut"

    def interrupted(self, pipe, samples, pictures, inputs):
        assert len(samples) <= 2  # so that memory does not grow with their number
        if pictures[0].number >= 2:
            raise KeyboardInterrupt
        write(self, pipe, samples, pictures, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(writer.PictureWriter, "write", interrupted)
        status, _, _ = run(*arguments, out)
    assert status == 130
    assert names(out) == ["0000.png", "0000_trace.png", "0001.png", "0001_trace.png"]
    (out / "0000_trace.png").unlink()
    stamps = {name: (out / name).stat().st_mtime_ns for name in ("0000.png", "0001.png")}

    status, printed, _ = run(*arguments, out)
    assert status == 0
    assert "made 4 pictures" in printed
    assert names(out) == names(tmp_path / "whole")
    for name in names(out):
        # The neighbours in a batch may change the rounding.
        found, expected = (pixels(folder / name) for folder in (out, tmp_path / "whole"))
        np.testing.assert_allclose(found.astype(int), expected, atol=1)
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    assert "nothing to make" in run(*arguments, out)[1]


def test_a_picture_of_a_seed_can_be_made_alone(run, people, tmp_path):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--seed", 7, "--output"]
    run(*arguments, tmp_path / "many", "--num-images", 4)
    status, _, _ = run(*arguments, tmp_path / "one", "--first-image", 3)
    assert status == 0
    assert names(tmp_path / "one") == ["0003.png"]
    one, three = (tmp_path / folder / "0003.png" for folder in ("one", "many"))
    assert read_settings(one) == read_settings(three)
    assert np.abs(pixels(one).astype(int) - pixels(three)).max() <= 1


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (["--seed", 4], "seed is 3 there and 4 here"),
        (["--alpha", 0.2], "alpha is 0.3 there and 0.2 here"),
        (["--negative-prompt", "blurry"], "negative_prompt is  there and blurry here"),
        (["--height", 24], "height is 16 there and 24 here"),
    ],
)
def test_pictures_of_other_settings_stay(run, people, tmp_path, options, difference):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--output", tmp_path]
    run(*arguments, "--seed", 3)
    before = pixels(tmp_path / "0000.png")
    status, _, shown = run(*arguments, "--seed", 3, *options)
    assert status == 1
    assert "0000.png exist already" in shown
    assert difference in shown
    np.testing.assert_array_equal(pixels(tmp_path / "0000.png"), before)


def test_a_random_seed_is_in_the_picture(run, people, tmp_path):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--output"]
    seeds = []
    for name in "ab":
        assert run(*arguments, tmp_path / name, "--seed", "random")[0] == 0
        seeds.append(read_settings(tmp_path / name / "0000.png")["seed"])
    assert seeds[0] != seeds[1]
    run(*arguments, tmp_path / "again", "--seed", seeds[0])
    again, first = (pixels(tmp_path / name / "0000.png") for name in ("again", "a"))
    np.testing.assert_array_equal(again, first)
    assert "nothing to make" in run(*arguments, tmp_path / "a", "--seed", "random")[1]


def test_metadata_hold_no_paths_of_photographs(run, people, tmp_path):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--num-images", 2, "--output"]
    run(*arguments, tmp_path / "with")
    for path in (tmp_path / "with").iterdir():
        settings = read_settings(path)
        assert settings["references"] == json.dumps([people[0].name])
        assert str(people[0].parent) not in str(settings)
    run(*arguments, tmp_path / "without", "--no-metadata", "--trace")
    assert len(names(tmp_path / "without")) == 5
    assert all(read_settings(path) == {} for path in (tmp_path / "without").iterdir())
    assert "nothing to make" in run(*arguments, tmp_path / "without", "--no-metadata")[1]


def test_photographs_of_a_person_have_commas_between(run, people, tmp_path):
    """A file whose name holds commas is one photograph."""
    for name, person in (("a,b.jpg", people[0]), ("c.jpg", people[1]), ("d.jpg", people[2])):
        shutil.copy(person, tmp_path / name)
    several = f"{tmp_path}/a,b.jpg,{tmp_path}/c.jpg"
    two = "a man <|image|> and a woman <|image|>"
    arguments = "--prompt", two, "--reference", several, "--reference", tmp_path / "d.jpg"
    run(*arguments, "--trace", "--output", tmp_path / "option")
    line = {"prompt": two, "references": [["a,b.jpg", "c.jpg"], "d.jpg"], "output": "0000"}
    prompts = write_lines(tmp_path / "prompts.jsonl", line, line | {"output": "again"})
    run("--prompt-file", prompts, "--output", tmp_path / "file")

    found, expected = (tmp_path / name / "0000.png" for name in ("option", "file"))
    assert read_settings(found)["references"] == '[["a,b.jpg", "c.jpg"], "d.jpg"]'
    assert np.abs(pixels(found).astype(int) - pixels(expected)).max() <= 1
    assert "contact_sheet.png" in names(tmp_path / "file")

    for text, message in ((f"{several},", "empty name"), (",".join(["a"] * 17), "17 photographs")):
        status, _, shown = run("--prompt", PROMPT, "--reference", text)
        assert status == 1
        assert message in shown


def test_a_folder_of_photographs_is_taken_in_the_order_of_names(run, people, tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    for name, person in (("b.JPG", people[1]), ("a.jpg", people[0])):
        shutil.copy(person, folder / name)
    (folder / "notes.txt").write_text("not a photograph")
    two = "a man <|image|> and a woman <|image|>"
    run("--prompt", two, "--reference", folder, "--output", tmp_path / "folder")
    run(
        *("--prompt", two, "--reference", people[0], "--reference", people[1]),
        *("--output", tmp_path / "files"),
    )
    found, expected = (tmp_path / name / "0000.png" for name in ("folder", "files"))
    assert read_settings(found)["references"] == '["a.jpg", "b.JPG"]'
    np.testing.assert_array_equal(pixels(found), pixels(expected))

    (tmp_path / "empty").mkdir()
    status, _, shown = run("--prompt", PROMPT, "--reference", tmp_path / "empty")
    assert status == 1
    assert "empty holds no image file" in shown


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        (["--mode", "sdm", "--negative-prompt", "blurry"], ["negative_prompt"]),
        (["--guidance-scale", 1, "--negative-prompt", "blurry"], ["negative_prompt"]),
        (["--sdm-weight", 0.2], ["sdm_weight"]),
        (["--mode", "weighted", "--smoothing", "gaussian"], ["smoothing"]),
        (["--mode", "tdm", "--alpha", 0.1, "--beta", 0.2], ["references", "alpha", "beta"]),
        (["--mode", "delayed", "--beta", 0.7, "--negative-prompt", "blurry"], ["beta"]),
        (["--alpha", 0.2, "--fusion-start", 1], ["alpha"]),
        (["--mode", "sdm", "--tdm-cache-interval", 2], ["tdm_cache_interval"]),
        (["--negative-prompt", "blurry", "--alpha", 0.2], []),
    ],
)
def test_options_without_an_effect_are_named(run, people, tmp_path, options, unused):
    arguments = ["--prompt", PROMPT, "--reference", people[0], "--output", tmp_path]
    _, _, shown = run(*arguments, *options)
    told = [line for line in shown.split("\n") if "has no effect" in line]
    assert [line.split()[1] for line in told] == unused


@pytest.mark.parametrize(
    "url", ["az://bucket/man.jpg", "https://host/man.jpg", "s3://bucket/people"]
)
def test_urls_are_refused_by_name(run, people, tmp_path, monkeypatch, url):
    """Wherever a path is taken; none becomes a local folder."""
    monkeypatch.chdir(tmp_path)
    lines = [{"prompt": PROMPT, "references": [url]}]
    file = write_lines(tmp_path / "prompts.jsonl", *lines)
    for arguments in (
        ("--prompt", PROMPT, "--reference", url),
        ("--prompt", PROMPT, "--reference", people[0], "--output", url),
        ("--prompt-file", url),
        ("--prompt-file", file),
    ):
        status, printed, shown = run(*arguments)
        assert status == 1, (printed, shown)
        assert f"{url} is a URL" in shown
    assert names(tmp_path) == ["outputs", "prompts.jsonl"]
