"""The command line of the evaluation, and all of it on tiny untrained networks."""

import json
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from fd_jax import FaceDiffuser, sharding
from fd_jax.assets import PEOPLE
from fd_jax.demo import evaluate
from fd_jax.demo.grid import read_subjects
from fd_jax.demo.painters import SCENES
from fd_jax.evaluation.judges import ClipIdentity
from fd_jax.images.png import read_settings


@pytest.fixture(scope="module")
def pair(checkpoints):
    """On two devices, of which a batch of five pictures is no multiple."""
    return FaceDiffuser.from_pretrained(**checkpoints, mesh=sharding.make_mesh(jax.devices()[:2]))


@pytest.fixture(scope="module")
def evaluated(pair, tmp_path_factory):
    given = evaluate.Arguments(
        output=tmp_path_factory.mktemp("evaluation"),
        num_steps=2,
        seeds=1,
        batch_size=5,
        keep_pictures=True,
    )
    subjects = read_subjects([PEOPLE], 2)
    training = {"num_pictures": 4, "num_steps": 2}
    return given, evaluate.evaluate(pair, given, subjects, None, SCENES[:2], **training)


def test_all_files_are_written(evaluated):
    given, found = evaluated

    names = {path.name for path in given.output.iterdir()}
    assert names == {
        *("report.md", "results.json", "plot.png", "modes.png"),
        *("scenes.safetensors", "pictures"),
    }
    assert len(found.cases) == 2 * 2 * 2
    for run in found.runs:
        assert len(list((given.output / "pictures" / run.name).iterdir())) == 8
    content = json.loads((given.output / "results.json").read_text())
    assert set(content["runs"]) == {"ceiling", *(run.name for run in found.runs)}
    assert content["chance"]["prompt"] == 0.5
    with Image.open(given.output / "modes.png") as sheet:
        assert sheet.width > 8 * 128
    assert (given.output / "report.md").read_text().startswith("# Evaluation")


def test_the_pictures_are_those_of_the_sampler(evaluated, pair):
    """Whatever else was in their batch."""
    given, found = evaluated
    subjects = read_subjects([PEOPLE], 2)
    case = found.cases[5]

    path = given.output / "pictures" / "snf" / "0005.png"
    [expected] = pair(
        case.prompt,
        [subjects[person].photograph for person in case.people],
        seed=case.seed,
        num_steps=2,
        solver="dpmsolver++",
        guidance_scale=3.0,
        batch_size=6,
    )

    with Image.open(path) as made:
        assert np.abs(np.asarray(made, int) - np.asarray(expected, int)).max() <= 1
    assert read_settings(path)["prompt"] == case.prompt


def test_devices_share_the_work_of_the_tower(pipe, pair):
    photographs = [subject.photograph for subject in read_subjects([PEOPLE], 8)]

    one, two = (ClipIdentity(p, photographs)(photographs[:5]) for p in (pipe, pair))

    np.testing.assert_allclose(one, two, atol=1e-5)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(FaceDiffuser, "from_pretrained", None)  # nothing is read before
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setattr(sys, "argv", ["demo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        evaluate.main()
    assert end.value.code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sdm", "runs/sdm"], "expected both --sdm and --tdm, or neither"),
        (["--seeds", "0"], "seeds is 0, expected a whole number, 1 or more"),
        (["--max-people", "1"], "max_people is 1"),
        (["--alpha", "0.7"], "alpha is 0.7 and beta is 0.6"),
        (["--people", "nowhere"], "root nowhere does not exist"),
        (["--judges", "nowhere"], "judges folder nowhere holds no face_detection"),
    ],
)
def test_bad_input_is_refused_at_once(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, *arguments)
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["report.md", "results.json", "plot.png", "modes.png"])
def test_an_earlier_evaluation_is_kept(monkeypatch, tmp_path, capsys, name):
    (tmp_path / name).write_text("earlier")

    run(monkeypatch, "--output", tmp_path)
    assert re.search(r"exist already.*--overwrite", capsys.readouterr().err)
    assert (tmp_path / name).read_text() == "earlier"
