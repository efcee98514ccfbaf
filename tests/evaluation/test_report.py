"""Tables and verdicts, on scores made by hand."""

import html
import json
import re

import numpy as np
import pytest

from fd_jax.demo.evaluate import Arguments
from fd_jax.evaluation.cases import Case, Run
from fd_jax.evaluation.judges import Measure
from fd_jax.evaluation.page import page
from fd_jax.evaluation.report import (
    Evaluation,
    compare_mix,
    is_above,
    results,
    retentions,
    swept,
    tables,
)

MEASURES = {
    "identity": Measure("identity", "cosine", "identity"),
    "sface": Measure("identity, SFace", "cosine", "identity"),
    "faces": Measure("faces right", "share"),
    "prompt": Measure("prompt", "share", "prompt"),
}
CASES = [
    Case(kind, len(people), scene, 0, people, "a man <|image|> in the snow", seed)
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
    names = ["composed", *(run.name for run in RUNS)]
    scores = {}
    for name in names:
        identity, prompt = means.get(name, (0.5, 0.5))
        keys = {"identity": identity, "sface": identity, "faces": 1.0, "prompt": prompt}
        scores[name] = {key: np.full(len(CASES), value) for key, value in keys.items()}
    settings = {"num_steps": 25, "sdm": "<b>runs/sdm</b>"}
    return Evaluation(
        CASES, RUNS, scores, MEASURES, {"prompt": 0.2}, settings, {"scene": "painted"}, {}
    )


def text_of(found):
    """The page without its tags, cells with bars between."""
    shown = page(found, ["plot.png"], {})
    return re.sub(r"<[^>]+>", "", re.sub(r"</t[dh]>", " | ", re.sub("</tr>", "\n", shown)))


GOOD = {"tdm": (0.1, 0.9), "sdm": (0.8, 0.3), "snf": (0.75, 0.85)}


def test_what_keeps_nine_tenths_of_both_holds():
    found = evaluation(**GOOD)

    assert all(retention.holds for retention in retentions(found))
    text = text_of(found)
    assert "TDM's prompt: holds" in html.unescape(text)
    assert "does not hold" not in text
    rows = {row[0]: row for row in tables(found)[1].rows}
    assert rows["snf less sdm"][3] == "0.55 [0.55, 0.55], more"


@pytest.mark.parametrize("snf", [(0.71, 0.9), (0.8, 0.8), (0.0, 0.9)])
def test_what_loses_more_does_not_hold(snf):
    found = evaluation(**GOOD | {"snf": snf})

    assert not all(retention.holds for retention in retentions(found))
    assert "TDM's prompt: does not hold" in html.unescape(text_of(found))


def test_nothing_is_kept_of_nothing():
    found = evaluation(**GOOD | {"sdm": (-0.1, 0.3)})

    assert [retention.holds for retention in retentions(found)] == [False, False, True]
    assert "sdm has none, does not hold" in text_of(found)


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
        "sface": identity,
        "prompt": prompt,
    }
    rows = {row[0]: row for row in tables(found)[1].rows}
    assert rows["snf less weighted"][1] == "0.05 [0.05, 0.05], more"
    assert rows["snf less weighted"][-1] == "yes"
    assert rows["snf less delayed"][-1] == above
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

    by_subset = {name: retentions(part)[0].holds for name, part in found.subsets().items()}

    expected = {"all": False, "seen": True, "unseen": False, "1 person": False, "2 people": False}
    assert by_subset == expected
    assert [len(part.cases) for part in found.subsets().values()] == [20, 10, 10, 10, 10]


def test_measures_that_were_not_taken_are_left_out():
    found = evaluation(**GOOD)
    kept = {key: MEASURES[key] for key in ("identity", "prompt")}
    found = found._replace(measures=kept)

    assert "SFace" not in text_of(found)
    assert [retention.measure for retention in retentions(found)] == ["identity", "prompt"]


def test_results_are_json_and_hold_every_picture():
    found = json.loads(json.dumps(results(evaluation(**GOOD)), allow_nan=False))

    assert len(found["cases"]) == 20
    assert found["runs"]["snf"]["scores"]["prompt"] == [0.85] * 20
    sampler = found["runs"]["snf"]["sampler"]
    assert (sampler["alpha"], sampler["beta"]) == (0.2, 0.5)
    assert found["means"]["all"]["snf"]["prompt"]["std"] == pytest.approx(0)
    assert {retention["holds"] for retention in found["claim"]["all"]} == {True}
    assert set(found["mixes"]) == {"all", "seen", "unseen", "1 person", "2 people"}
    identity = found["mixes"]["1 person"]["weighted"]["gains"][0]
    assert identity["difference"] == pytest.approx({"value": 0.25, "low": 0.25, "high": 0.25})
    assert (identity["measure"], identity["text"]) == ("identity", "more")


def test_the_sweep_holds_the_main_borders_once():
    assert len(swept(RUNS)) == 7
    others = Arguments(alpha=0.25, beta=0.5).runs()
    assert [(run.sampler.alpha, run.sampler.beta) for run in others if run.name == "snf"] == [
        (0.25, 0.5)
    ]
    assert len(swept(others)) == 8


def test_what_was_not_measured_is_an_empty_cell_and_null():
    found = evaluation(**GOOD)
    for columns in found.scores.values():
        columns["faces"] = np.full(len(CASES), np.nan)

    row = next(row for row in tables(found)[2].rows if row[0] == "snf")
    assert row[3] == ""
    content = json.loads(json.dumps(results(found), allow_nan=False))
    assert content["means"]["all"]["snf"]["faces"]["value"] is None
    assert content["runs"]["snf"]["scores"]["faces"] == [None] * 20


def test_pictures_made_elsewhere_need_no_claim():
    found = evaluation(**GOOD)._replace(runs=[Run("theirs", None)])
    found = found._replace(scores={"theirs": found.scores["snf"]})

    assert tables(found)[0].title == "All pictures"
    assert "claim" not in results(found)
    assert found.names() == ["theirs"]


def test_the_page_executes_nothing_of_what_it_is_given():
    shown = page(evaluation(**GOOD), [], {"<script>": ['" onerror="x.png']})

    assert "<script>" not in shown
    assert "<b>runs" not in shown
    assert 'onerror="' not in shown
