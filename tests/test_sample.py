"""The command line of `sample.py`, on tiny untrained networks."""

import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from fd_jax import assets
from fd_jax.images.pixels import to_uint8
from fd_jax.images.png import read_settings
from fd_jax.inference import cli
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.prompt_file import read_prompt_file
from fd_jax.networks import make_networks
from tests.helpers.flat_files import SDM_PARTS, TDM_PARTS
from tests.helpers.networks import TINY
from tests.helpers.processes import start, together
from tests.helpers.runs import write_run
from tests.helpers.untrained import random_params

ROOT = pathlib.Path(__file__).parents[1]
PROMPT = "a man <|image|> in the snow"
FAST = ["--num-steps", "4"]


@pytest.fixture
def paths(checkpoints) -> list[str]:
    return [f"--{key.replace('_', '-')}={checkpoints[key]}" for key in ("base", "sdm", "tdm")] + [
        f"--image-encoder={checkpoints['image_encoder']}"
    ]


@pytest.fixture
def run(paths, monkeypatch, capsys):
    """Runs the command line in this process; returns its exit status, output and errors."""
    # The compile cache of the user stays out of tests.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")

    def run(*arguments: object, checkpoints: list[str] = paths):
        monkeypatch.setattr(sys, "argv", ["sample.py", *checkpoints, *FAST, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        status = stop.value.code
        out, err = capsys.readouterr()
        if isinstance(status, str):
            return 1, out, err + status
        return status, out, err

    return run


@pytest.fixture
def reads_nothing(monkeypatch):
    """Makes it an error to read checkpoints."""
    monkeypatch.setattr(FaceDiffuser, "from_pretrained", None)


def pixels(path: pathlib.Path) -> np.ndarray:
    return np.array(Image.open(path))


def test_pictures_carry_their_settings(run, people, tmp_path, pipe):
    out = tmp_path / "new" / "folder"
    status, printed, shown = run(
        *("--prompt", PROMPT, "--reference", people[0], "--num-images", 2, "--seed", 3),
        *("--alpha", 0.25, "--beta", 0.75, "--negative-prompt", "blurry", "--output", out),
    )
    assert status == 0
    assert "made 2 pictures" in printed
    assert "4/4" in shown
    names = sorted(path.name for path in out.iterdir())
    assert names == ["0000.png", "0001.png", "contact_sheet.png"]
    settings = read_settings(out / "0001.png")
    expected = {
        "prompt": PROMPT,
        "negative_prompt": "blurry",
        "references": json.dumps([people[0].name]),
        "seed": "3",
        "image_number": "1",
        "alpha": "0.25",
        "num_steps": "4",
        "solver": "ddim",
        "guidance_scale": "5.0",
        "width": "16",
        "subject_resolution": "28",
        "dtype": "float32",
    }
    assert expected.items() <= settings.items()
    images = pipe(
        PROMPT,
        people[:1],
        negative_prompt="blurry",
        num_images=2,
        seed=3,
        num_steps=4,
        alpha=0.25,
        beta=0.75,
        subject_resolution=28,
    ).pixels
    for i, image in enumerate(to_uint8(images)):
        difference = pixels(out / f"{i:04d}.png").astype(int) - image
        assert np.abs(difference).max() <= 1


def test_existing_pictures_stay_unless_told_otherwise(run, people, tmp_path, request):
    existing = tmp_path / "0000.png"
    existing.write_text("dear to somebody")
    arguments = "--prompt", PROMPT, "--reference", people[0], "--output", tmp_path
    request.getfixturevalue("reads_nothing")
    status, _, shown = run(*arguments)
    assert status == 1
    assert "0000.png exist already" in shown
    assert existing.read_text() == "dear to somebody"


def test_overwrite_and_trace(run, people, tmp_path):
    (tmp_path / "0000.png").write_text("dear to nobody")
    arguments = "--prompt", PROMPT, "--reference", people[0], "--output", tmp_path
    status, _, _ = run(*arguments, "--overwrite", "--trace")
    assert status == 0
    assert pixels(tmp_path / "0000.png").shape == (16, 16, 3)
    assert pixels(tmp_path / "0000_trace.png").std() > 10


BAD_ARGUMENTS = {
    "no prompt": ([], "either --prompt or --prompt-file"),
    "two prompts": (["--prompt", PROMPT, "--prompt-file", "x"], "either --prompt or --prompt-file"),
    "alpha": (["--prompt", PROMPT, "--alpha", "0.8"], "alpha is 0.8 and beta is 0.6"),
    "solver": (["--prompt", PROMPT, "--solver", "euler"], "euler"),
    "images": (["--prompt", PROMPT, "--num-images", "0"], "num_images is 0"),
    "no tdm": (["--prompt", PROMPT], "but no tdm"),
    "file and images": (["--prompt-file", "x", "--num-images", "2"], "--num-images goes with"),
    "no such file": (["--prompt-file", "nowhere.jsonl"], "nowhere.jsonl"),
    "no such photograph": (["--prompt", PROMPT, "--reference", "nobody.jpg"], "nobody.jpg"),
    "process": (["--prompt", PROMPT, "--process-id", "1"], "all three or none"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
@pytest.mark.usefixtures("reads_nothing")
def test_bad_arguments_are_named(run, paths, tmp_path, case):
    arguments, message = BAD_ARGUMENTS[case]
    checkpoints = [path for path in paths if case != "no tdm" or not path.startswith("--tdm")]
    status, _, shown = run(*arguments, "--output", tmp_path, checkpoints=checkpoints)
    assert status != 0
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("reads_nothing")
def test_an_output_folder_that_cannot_be_written_is_named(run, people, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, shown = run(
        *("--prompt", PROMPT, "--reference", people[0], "--output", tmp_path / "file" / "folder")
    )
    assert status == 1
    assert "file/folder" in shown


def test_a_missing_checkpoint_is_named(run, people, paths, tmp_path):
    status, _, shown = run(
        *(
            "--prompt",
            PROMPT,
            "--reference",
            people[0],
            "--output",
            tmp_path,
            "--sdm",
            "nowhere.bin",
        ),
        checkpoints=[path for path in paths if not path.startswith("--sdm")],
    )
    assert status == 1
    assert "nowhere.bin" in shown


def test_runs_are_sampled_without_anything_else(run, checkpoints, people, tmp_path):
    networks = make_networks(TINY)
    runs = []
    for kind, parts in (("sdm", SDM_PARTS), ("tdm", TDM_PARTS)):
        params = {part: random_params(getattr(networks, part).abstract, 0, part) for part in parts}
        runs.append(f"--{kind}={write_run(tmp_path / kind, kind, params, TINY)}")
    arguments = "--prompt", PROMPT, "--reference", people[0], "--output", tmp_path / "out"
    status, _, shown = run(*arguments, checkpoints=runs)
    assert status == 0, shown
    settings = read_settings(tmp_path / "out" / "0000.png")
    assert settings["sdm"] == str(tmp_path / "sdm")
    assert "base" not in settings

    flat = [f"--sdm={checkpoints['sdm']}", runs[1], "--overwrite"]
    status, _, shown = run(*arguments, checkpoints=flat)
    assert status == 1
    assert "base is None" in shown
    assert "sdm.safetensors holds no configs, as the folder of a training run would" in shown


def write_lines(path: pathlib.Path, *lines: object) -> pathlib.Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts))
    return path


def test_prompt_file(run, people, tmp_path):
    """Bad lines are named and the others made; the same command makes only what is missing."""
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(people[0].read_bytes()[:2000])
    lines = [
        {"prompt": PROMPT, "references": [str(people[0])], "seed": 3, "output": "a.png"},
        "{broken",
        {"prompt": PROMPT, "references": [str(damaged)], "output": "b.png"},
        {"prompt": PROMPT, "references": []},
        {"prompt": "a woman <|image|>", "references": [str(people[1])], "output": "c.png"},
    ]
    file, out = write_lines(tmp_path / "prompts.jsonl", *lines), tmp_path / "out"
    arguments = "--prompt-file", file, "--output", out, "--batch-size", 8
    status, printed, shown = run(*arguments)
    assert status == 1
    assert "made 2 pictures" in printed
    assert "3 failed" in printed
    for line in (2, 3, 4):
        assert f"line {line}: " in shown
    assert "damaged.jpg" in shown
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "c.png"]
    assert read_settings(out / "a.png")["seed"] == "3"
    assert read_settings(out / "c.png")["seed"] == "0"

    first, again = pixels(out / "a.png"), pixels(out / "c.png")
    (out / "c.png").unlink()
    stamp = (out / "a.png").stat().st_mtime_ns
    write_lines(file, lines[0], lines[4])
    status, printed, _ = run(*arguments)
    assert status == 0
    assert "made 1 pictures" in printed
    assert (out / "a.png").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(pixels(out / "c.png"), again)
    assert (out / "contact_sheet.png").exists()

    status, printed, _ = run(*arguments)
    assert status == 0
    assert "nothing to make" in printed

    single = tmp_path / "single"
    run("--prompt", PROMPT, "--reference", people[0], "--seed", 3, "--output", single)
    assert np.abs(pixels(single / "0000.png").astype(int) - first).max() <= 1


@pytest.mark.slow
def test_traces_of_a_prompt_file(run, people, tmp_path):
    """They stand beside their pictures; what of the two is missing is made."""
    lines = [
        {"prompt": PROMPT, "references": [str(path)], "output": f"{name}.png"}
        for name, path in zip("abc", people, strict=False)
    ]
    file, out = write_lines(tmp_path / "prompts.jsonl", *lines), tmp_path / "out"
    arguments = "--prompt-file", file, "--output", out
    status, printed, _ = run(*arguments)
    assert status == 0
    stamps = {path.name: path.stat().st_mtime_ns for path in out.glob("?.png")}
    assert sorted(stamps) == ["a.png", "b.png", "c.png"]

    status, printed, _ = run(*arguments, "--trace")
    assert status == 0
    assert "made 3 pictures" in printed
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        *("a.png", "a_trace.png", "b.png", "b_trace.png", "c.png", "c_trace.png"),
        "contact_sheet.png",
    ]
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    assert read_settings(out / "b_trace.png") == read_settings(out / "b.png")
    status, printed, _ = run(*arguments, "--trace")
    assert "nothing to make" in printed

    expected = tmp_path / "prompt"
    run("--prompt", PROMPT, "--reference", people[1], "--trace", "--output", expected)
    difference = pixels(out / "b_trace.png").astype(int) - pixels(expected / "0000_trace.png")
    assert np.mean(np.abs(difference) > 2) < 0.01  # a pixel of the mask may flip


@pytest.mark.usefixtures("bundled_models")
def test_without_models_those_of_the_package_are_sampled(run, people, tmp_path):
    """And without a prompt, the examples."""
    out = tmp_path / "out"
    status, printed, shown = run("--trace", "--output", out, checkpoints=[])
    assert status == 0, shown
    assert printed.count("bundled models: 64 px") == 1
    assert "made 12 pictures" in printed
    requests, _ = read_prompt_file(assets.PROMPTS)
    names = {request.output for request in requests}
    traces = {name.replace(".png", "_trace.png") for name in names}
    assert {path.name for path in out.iterdir()} == names | traces | {"contact_sheet.png"}
    settings = read_settings(out / "01_brick_wall.png")
    assert settings["models"] == "bundled"
    assert "sdm" not in settings

    arguments = "--prompt", PROMPT, "--reference", people[0], "--output", tmp_path / "other"
    status, printed, _ = run(*arguments, checkpoints=[])
    assert status == 0
    assert printed.count("bundled models: 64 px") == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["0000.png"]


@pytest.mark.slow
def test_nothing_is_said_of_models_that_were_given(run, people, tmp_path):
    _, printed, _ = run("--prompt", PROMPT, "--reference", people[0], "--output", tmp_path)
    assert "bundled" not in printed


def run_two_processes(arguments: list[str], folder: pathlib.Path) -> None:
    shares = together(arguments, 2)
    logs = [folder / f"log{i}" for i in range(2)]
    started = [
        start("sample.py", share, log, devices=2) for share, log in zip(shares, logs, strict=True)
    ]
    try:
        statuses = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert statuses == [0, 0], "\n".join(log.read_text() for log in logs)


@pytest.mark.slow
def test_two_processes_make_one_prompt(run, paths, people, tmp_path):
    arguments = ["--prompt", PROMPT, "--reference", str(people[0]), "--num-images", "3", *FAST]
    arguments += ["--num-steps", "7", "--trace"]
    run_two_processes([*paths, *arguments, "--output", str(tmp_path / "two")], tmp_path)
    run(*arguments, "--output", tmp_path / "one")
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in ("0000.png", "0001.png", "0002.png"):
        difference = pixels(tmp_path / "two" / name).astype(int) - pixels(tmp_path / "one" / name)
        assert np.abs(difference).max() <= 1


def test_two_processes_share_a_prompt_file(paths, people, tmp_path):
    lines = [{"prompt": PROMPT, "references": [str(path)], "seed": 1} for path in people[:3]]
    file = write_lines(tmp_path / "prompts.jsonl", *lines)
    arguments = ["--prompt-file", str(file), "--batch-size", "2", *FAST]
    run_two_processes([*paths, *arguments, "--output", str(tmp_path / "out")], tmp_path)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000001.png", "000002.png", "000003.png"]
    printed = [(tmp_path / f"log{i}").read_text() for i in range(2)]
    assert "made 2 pictures" in printed[0]
    assert "made 1 pictures" in printed[1]
