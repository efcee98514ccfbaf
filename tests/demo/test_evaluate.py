"""The command line of the evaluation, and all of it on tiny untrained networks."""

import dataclasses
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
from fd_jax.demo.judges import ClipIdentity
from fd_jax.demo.painters import SCENES
from fd_jax.errors import InputError
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
    )
    subjects = read_subjects([PEOPLE], 2)
    training = {"num_pictures": 4, "num_steps": 2}
    return given, evaluate.evaluate(pair, given, subjects, (), SCENES[:2], **training)


@pytest.mark.slow
def test_all_files_are_written(evaluated):
    given, found = evaluated

    names = {path.name for path in given.output.iterdir()}
    assert names == {
        *("report.html", "results.json", "plot.png", "pictures.png"),
        *("scenes.safetensors", "pictures", "cases.jsonl", "settings.json"),
    }
    assert len(found.cases) == 2 * 2 * 2
    for run in found.runs:
        assert len(list((given.output / "pictures" / run.name).iterdir())) == 8
    content = json.loads((given.output / "results.json").read_text())
    assert set(content["runs"]) == {"composed", "autoencoder", *(run.name for run in found.runs)}
    assert content["chance"]["prompt"] == 0.5
    with Image.open(given.output / "pictures.png") as sheet:
        assert sheet.width > 8 * 128
    page = (given.output / "report.html").read_text()
    assert "<h1>Evaluation</h1>" in page
    assert found.scores["autoencoder"]["prompt"].shape == (8,)


@pytest.mark.slow
def test_the_pictures_are_those_of_the_sampler(evaluated, pair):
    """Whatever else was in their batch."""
    given, found = evaluated
    subjects = read_subjects([PEOPLE], 2)
    case = found.cases[5]

    path = given.output / "pictures" / "snf" / f"{case.name}.png"
    [expected] = pair(
        case.prompt,
        [subjects[person].person.photograph for person in case.people],
        seed=case.seed,
        num_steps=2,
        solver="dpmsolver++",
        alpha=given.alpha,
        beta=given.beta,
        guidance_scale=4.0,
        batch_size=6,
    )

    with Image.open(path) as made:
        assert np.abs(np.asarray(made, int) - np.asarray(expected, int)).max() <= 1
    assert read_settings(path)["prompt"] == case.prompt


def test_devices_share_the_work_of_the_tower(pipe, pair):
    photographs = [subject.person.photograph for subject in read_subjects([PEOPLE], 8)]

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
        (["--alpha", "0.7"], "alpha is 0.7 and beta is 0.5"),
        (["--people", "nowhere"], "root nowhere does not exist"),
        (["--judges", "nowhere"], "face recognizer nowhere does not exist"),
    ],
)
def test_bad_input_is_refused_at_once(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, *arguments)
    assert re.search(f"error: .*{message}", capsys.readouterr().err)


@pytest.mark.slow
def test_the_same_evaluation_is_resumed_and_another_one_refused(evaluated, pair, monkeypatch):
    """Pictures that exist are not made again."""
    given, found = evaluated
    subjects = read_subjects([PEOPLE], 2)
    training = {"num_pictures": 4, "num_steps": 2}
    lost = given.output / "pictures" / "snf" / f"{found.cases[3].name}.png"
    before = np.asarray(Image.open(lost), int)
    lost.unlink()
    calls = []
    sampled = type(pair).__call__
    monkeypatch.setattr(
        type(pair), "__call__", lambda *a, **k: calls.append(a[1]) or sampled(*a, **k)
    )

    again = evaluate.evaluate(pair, given, subjects, (), SCENES[:2], **training)

    assert calls == [[found.cases[3].prompt]]
    assert np.abs(np.asarray(Image.open(lost), int) - before).max() <= 1
    np.testing.assert_array_equal(again.scores["snf"]["prompt"], found.scores["snf"]["prompt"])

    other = dataclasses.replace(given, num_steps=3)
    with pytest.raises(InputError, match=r"with num_steps 2, here it is 3; .*--overwrite"):
        evaluate.evaluate(pair, other, subjects, (), SCENES[:2], **training)
