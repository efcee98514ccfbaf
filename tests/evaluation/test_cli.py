"""The command line, on pictures that were made elsewhere."""

import json
import shutil
import sys

import pytest

from fd_jax.assets import PEOPLE
from fd_jax.evaluation import cli

NAMES = "P003", "P005"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on two people and one prompt; returns exit status and errors."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        shutil.copytree(PEOPLE / name, tmp_path / "people" / name)
    (tmp_path / "people" / "nouns.json").write_text('{"P003": "woman", "P005": "man"}')
    (tmp_path / "prompts.txt").write_text("{people} smiling\n")

    def run(*arguments):
        given = ["--people", "people", "--prompts", "prompts.txt", "--images", "1", *arguments]
        monkeypatch.setattr(sys, "argv", ["fd-evaluate", *given, "--output", "out"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, capsys.readouterr().err

    return run


def test_pictures_made_elsewhere_are_scored(run, tmp_path):
    """The photographs themselves, once in their places and once one of them missing."""
    made = tmp_path / "made"
    made.mkdir()
    for number, name in enumerate(NAMES):
        target = made / f"subject_{number:04d}_prompt_0000_instance_0000.jpg"
        shutil.copy(PEOPLE / name / f"{name}.jpg", target)

    status, shown = run("--pictures", "made")

    assert status == 0, shown
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["runs"]["made"]["scores"]["faces"] == [1, 1]
    assert set(found["missing_judges"]) == {"CLIP", "face recognizer"}
    assert "--clip FOLDER" in (tmp_path / "out" / "report.html").read_text()
    lines = list(map(json.loads, (tmp_path / "out" / "cases.jsonl").read_text().splitlines()))
    assert [line["prompt"] for line in lines] == [
        *("a woman <|image|> smiling", "a man <|image|> smiling")
    ]
    assert lines[1]["references"] == [str(tmp_path / "people" / "P005" / "P005.jpg")]

    target.unlink()
    status, shown = run("--pictures", "made")
    assert status == 1
    assert "pictures made lack 1 of 2, the first is subject_0001_prompt_0000" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pictures", "made", "--sdm", "a", "--tdm", "b"], "either --pictures, or models"),
        (["--pictures", "a/made", "b/made"], "expected folders of different names"),
        (["--subjects", "5"], "subjects is 5, expected a whole number in 1..4"),
        (["--subjects", "3"], "there are 2 people, expected 3 or more"),
        (["--modes", "tdm", "--sweep"], "--sweep varies the borders of mode snf"),
        (["--modes", "snf", "snf"], "expected one or more, each once"),
        (["--alpha", "0.7"], "alpha is 0.7 and beta is 0.6"),
        (["--clip", "nowhere"], "CLIP nowhere is no folder"),
        (["--judges", "nowhere.onnx"], "face recognizer nowhere.onnx does not exist"),
        (["--sdm", "a"], "given is sdm a, but no tdm"),
    ],
)
def test_bad_input_is_refused_before_models_are_read(run, arguments, message):
    status, shown = run(*arguments)

    assert status == 1
    assert message in " ".join(shown.split())
