import json

import numpy as np
import pytest

from fd_jax.demo.evaluate import Arguments
from fd_jax.demo.grid import EvalCase
from fd_jax.demo.report import (
    CEILING,
    Evaluation,
    compare_mix,
    is_above,
    markdown,
    results,
    retentions,
    swept,
)

CASES = [
    EvalCase(kind, scene, people, "a man <|image|> in the snow", seed)
    for seed, (kind, scene, people) in enumerate(
        (kind, scene, people)
        for kind in ("seen", "unseen")
        for people in ((0,), (1, 0))
        for scene in range(5)
    )
]
RUNS = Arguments().runs()


def evaluation(**means):
    """Scores that are the same in all cases: identity and prompt of modes, by default 0.5."""
    names = [CEILING, *(run.name for run in RUNS)]
    scores = {}
    for name in names:
        identity, prompt = means.get(name, (0.5, 0.5))
        keys = {"identity": identity, "identified": 0.7, "sface": identity, "faces": 1.0}
        keys["prompt"] = prompt
        scores[name] = {key: np.full(len(CASES), value) for key, value in keys.items()}
    chance = {"prompt": 0.2, "identified": 0.5}
    return Evaluation(CASES, RUNS, scores, chance, 0.99, {"num_steps": 25})


GOOD = {"tdm": (0.1, 0.9), "sdm": (0.8, 0.3), "snf": (0.75, 0.85)}


def test_what_keeps_nine_tenths_of_both_holds():
    found = evaluation(**GOOD)

    assert all(retention.holds for retention in retentions(found))
    text = markdown(found)
    assert "prompt accuracy: **holds**" in text
    assert "does not hold" not in text
    assert "prompt, snf less sdm: 0.55 [0.55, 0.55], more" in text


@pytest.mark.parametrize("snf", [(0.71, 0.9), (0.8, 0.8), (0.0, 0.9)])
def test_what_loses_more_does_not_hold(snf):
    found = evaluation(**GOOD | {"snf": snf})

    assert not all(retention.holds for retention in retentions(found))
    assert "prompt accuracy: **does not hold**" in markdown(found)


def test_nothing_is_kept_of_nothing():
    found = evaluation(**GOOD | {"sdm": (-0.1, 0.3)})

    assert [retention.holds for retention in retentions(found)] == [False, False, True]
    assert "sdm has none, does not hold" in markdown(found)


@pytest.mark.parametrize(
    ("delayed", "above", "identity", "prompt"),
    [
        ((0.7, 0.85), "yes", "more", "no clear difference"),
        ((0.75, 0.8), "yes", "no clear difference", "more"),
        ((0.75, 0.85), "not clear", "no clear difference", "no clear difference"),
        ((0.7, 0.9), "no", "more", "less"),
        ((0.8, 0.85), "no", "less", "no clear difference"),
    ],
)
def test_the_other_ways_to_mix_are_compared_on_both_axes(delayed, above, identity, prompt):
    found = evaluation(**GOOD | {"weighted": (0.7, 0.8), "delayed": delayed})

    gains = compare_mix(found, "delayed")
    assert is_above(gains) == above
    assert {by.measure: by.text for by in gains} == {
        "identity": identity,
        "identified": "no clear difference",
        "sface": identity,
        "prompt": prompt,
    }
    rows = markdown(found).split("| snf less |")[1].splitlines()
    assert rows[2].endswith("| **yes** |")
    assert rows[2].startswith("| weighted | 0.05 [0.05, 0.05], more |")
    assert rows[3].startswith("| delayed |")
    assert rows[3].endswith(f"| **{above}** |")
    assert results(found)["mixes"]["all"]["delayed"]["above"] == above


def test_the_difference_to_other_mixes_is_taken_cell_by_cell():
    """What all modes share, easy and hard cases, does not widen the interval."""
    found = evaluation(**GOOD | {"delayed": (0.7, 0.85)})
    hard = np.linspace(-0.4, 0.4, len(CASES))
    for columns in found.scores.values():
        columns["identity"] = columns["identity"] + hard

    assert str(compare_mix(found, "delayed")[0].difference) == "0.05 [0.05, 0.05]"

    # As large a mean, but of both signs.
    found.scores["delayed"]["identity"] = found.scores["snf"]["identity"] - 0.05 - hard
    assert compare_mix(found, "delayed")[0].text == "no clear difference"


def test_subsets_have_their_own_verdicts():
    found = evaluation(**GOOD)
    unseen = np.array([case.kind == "unseen" for case in CASES])
    found.scores["snf"]["identity"][unseen] = 0

    by_subset = {
        name: retentions(found.subset(name))[0].holds
        for name in ("all", "seen", "unseen", "one", "two")
    }

    assert by_subset == {"all": False, "seen": True, "unseen": False, "one": False, "two": False}
    assert [len(found.subset(name).cases) for name in ("all", "seen", "one")] == [20, 10, 10]


def test_measures_that_were_not_taken_are_left_out():
    found = evaluation(**GOOD)
    for columns in found.scores.values():
        del columns["sface"], columns["faces"]

    assert "SFace" not in markdown(found)
    assert [retention.measure for retention in retentions(found)] == ["identity", "prompt"]


def test_results_are_json_and_hold_every_picture():
    found = json.loads(json.dumps(results(evaluation(**GOOD)), allow_nan=False))

    assert len(found["cases"]) == 20
    assert found["runs"]["snf"]["scores"]["prompt"] == [0.85] * 20
    assert (found["runs"]["snf"]["alpha"], found["runs"]["snf"]["beta"]) == (0.3, 0.6)
    assert {retention["holds"] for retention in found["claim"]["all"]} == {True}
    assert set(found["mixes"]) == {"all", "seen", "unseen", "one", "two"}
    identity = found["mixes"]["one"]["weighted"]["gains"][0]
    assert identity["difference"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert (identity["measure"], identity["text"]) == ("identity", "more")


def test_the_sweep_holds_the_main_borders_once():
    assert len(swept(RUNS)) == 7
    others = Arguments(alpha=0.25, beta=0.5).runs()
    assert [(run.sampler.alpha, run.sampler.beta) for run in others if run.name == "snf"] == [
        (0.25, 0.5)
    ]
    assert len(swept(others)) == 8
