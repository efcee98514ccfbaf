"""The scores of all modes as a report to read, and whether it bears out the paper's claim."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fd_jax.demo.grid import Cell
from fd_jax.demo.scoring import MEASURES, Scores
from fd_jax.evaluation.intervals import Estimate, difference, mean, ratio
from fd_jax.sampling.stages import SamplerConfig

CEILING = "ceiling"  # the row of pictures without any model: people stood in painted scenes
TOLERANCE = 0.9  # of what each model does best alone, SNF is to keep
MIXES = "weighted", "delayed"  # the other ways to mix both models

SUBSETS: dict[str, Callable[[Cell], bool]] = {
    "all": lambda cell: True,
    "seen": lambda cell: cell.kind == "seen",
    "unseen": lambda cell: cell.kind == "unseen",
    "one": lambda cell: len(cell.people) == 1,
    "two": lambda cell: len(cell.people) == 2,
}
_TITLES = {
    "all": "All pictures",
    "seen": "People seen in training",
    "unseen": "People not seen in training",
    "one": "One person",
    "two": "Two people",
}


class Run(NamedTuple):
    """A way to make all pictures."""

    name: str
    sampler: SamplerConfig


class Evaluation(NamedTuple):
    """All that was measured."""

    cells: Sequence[Cell]
    runs: Sequence[Run]
    scores: Mapping[str, Scores]  # by the names of the runs, and of the ceiling
    chance: Mapping[str, float]  # by measure
    classifier_accuracy: float
    settings: Mapping[str, Any]

    def subset(self, name: str) -> "Evaluation":
        """Returns the part of the pictures that `SUBSETS` names."""
        rows = [i for i, cell in enumerate(self.cells) if SUBSETS[name](cell)]
        scores = {
            run: {measure: column[rows] for measure, column in columns.items()}
            for run, columns in self.scores.items()
        }
        return self._replace(cells=[self.cells[i] for i in rows], scores=scores)


class Verdict(NamedTuple):
    """Whether SNF keeps what one model does well alone."""

    measure: str
    alone: str  # the mode of that model
    text: str
    holds: bool


def verdicts(evaluation: Evaluation) -> list[Verdict]:
    """Returns whether SNF keeps most of the SDM's identity and of the TDM's scenes.

    Means decide; the intervals of their ratio, over the same cells, are in the text.
    """
    snf, found = evaluation.scores["snf"], []
    for measure, alone in (("identity", "sdm"), ("sface", "sdm"), ("prompt", "tdm")):
        if measure in snf:
            own, others = snf[measure], evaluation.scores[alone][measure]
            text = str(ratio(own, others)) if others.mean() > 0 else f"{alone} has none"
            holds = bool(others.mean() > 0 and own.mean() >= TOLERANCE * others.mean())
            found.append(Verdict(measure, alone, text, holds))
    return found


class Gain(NamedTuple):
    """By how much SNF has more of a measure than another mode, over the same cells."""

    measure: str
    other: str
    difference: Estimate
    text: str


def gain(evaluation: Evaluation, measure: str, other: str) -> Gain:
    """Returns SNF less another mode, and what the interval says of the difference."""
    found = difference(evaluation.scores["snf"][measure], evaluation.scores[other][measure])
    text = "more" if found.low > 0 else "less" if found.high < 0 else "no clear difference"
    return Gain(measure, other, found, text)


def mix_gains(evaluation: Evaluation, other: str) -> list[Gain]:
    """Returns SNF less another way to mix, in all measures of identity and in the prompt."""
    measures = ("identity", "identified", "sface", "prompt")
    return [gain(evaluation, key, other) for key in measures if key in evaluation.scores["snf"]]


def is_above(gains: Sequence[Gain]) -> str:
    """Returns whether SNF has clearly more in at least one measure, and clearly less in none."""
    texts = {by.text for by in gains}
    return "no" if "less" in texts else "yes" if "more" in texts else "not clear"


def markdown(evaluation: Evaluation) -> str:
    """Returns the report."""
    subsets = {name: evaluation.subset(name) for name in SUBSETS}
    subsets = {name: part for name, part in subsets.items() if part.cells}
    lines = [
        "# Evaluation",
        "",
        f"{len(evaluation.cells)} pictures of each mode, of the same prompts, people and noise. In "
        "brackets are 95 % confidence intervals (bootstrap over pictures). `ceiling` is no mode: "
        "people stood in painted scenes by code, as a model without faults would.",
        "",
        "![Identity against prompt](plot.png)",
        "",
        "![Pictures of all modes](modes.png)",
        *_claim(evaluation, subsets),
    ]
    modes = [CEILING, *(run.name for run in evaluation.runs if run.name == run.sampler.mode)]
    for name, part in subsets.items():
        lines += ["", f"## {_TITLES[name]}", "", f"{len(part.cells)} pictures of each mode.", ""]
        lines += _table("mode", modes, part)
        if name == "all":
            chance = {key: f"{value:.2f}" for key, value in part.chance.items()}
            lines.append(_row("by chance", [chance.get(key, "") for key in _measures(part)]))
            if "sface" in chance:
                lines += ["", "By chance SFace finds as much in photographs of different people."]
    lines += ["", "## Borders of the stages", ""]
    lines += [
        "SNF with other shares of steps for scene (alpha), fusion and person (beta), all pictures."
    ]
    sweep = swept(evaluation.runs)
    labels = {run.name: f"{run.sampler.alpha:g}, {run.sampler.beta:g}" for run in sweep}
    lines += ["", *_table("alpha, beta", list(labels), evaluation, labels)]
    lines += ["", "## Measures", ""]
    for key in _measures(evaluation):
        lines.append(f"- **{MEASURES[key].title}**: {MEASURES[key].explanation}.")
    lines += [
        "",
        f"The classifier of scenes takes {evaluation.classifier_accuracy:.1%} of held-out painted "
        "pictures, with other seeds and people, for their scene.",
        "",
        "## Config",
        "",
        *(f"- {key}: {value}" for key, value in evaluation.settings.items()),
    ]
    return "\n".join(lines) + "\n"


def results(evaluation: Evaluation) -> dict[str, Any]:
    """Returns everything, down to the score of each picture, as JSON has it."""
    runs = {run.name: run.sampler for run in evaluation.runs}
    parts = {name: evaluation.subset(name) for name in SUBSETS}
    return {
        "settings": dict(evaluation.settings),
        "classifier_accuracy": evaluation.classifier_accuracy,
        "chance": dict(evaluation.chance),
        "claim": {
            name: [verdict._asdict() for verdict in verdicts(part)]
            for name, part in parts.items()
            if part.cells
        },
        "mixes": {
            name: {other: _mix(part, other) for other in MIXES}
            for name, part in parts.items()
            if part.cells
        },
        "cells": [cell._asdict() for cell in evaluation.cells],
        "runs": {
            name: {
                "alpha": runs[name].alpha if name in runs else None,
                "beta": runs[name].beta if name in runs else None,
                "scores": {key: column.round(4).tolist() for key, column in columns.items()},
            }
            for name, columns in evaluation.scores.items()
        },
    }


def swept(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs of SNF, by their borders."""
    snf = [run for run in runs if run.sampler.mode == "snf"]
    return sorted(snf, key=lambda run: (run.sampler.alpha, run.sampler.beta))


def _claim(evaluation: Evaluation, subsets: Mapping[str, Evaluation]) -> list[str]:
    found = verdicts(evaluation)
    lines = [
        "",
        "## The claim",
        "",
        f"Three stages with noise fusion keep at least {TOLERANCE:.0%} of the SDM's identity and "
        f"of the TDM's prompt accuracy: **{_holds(all(verdict.holds for verdict in found))}**.",
        "",
    ]
    heads = [f"{MEASURES[v.measure].title}, snf by {v.alone}" for v in found]
    lines += _head("pictures", heads)
    for name, part in subsets.items():
        cells = [f"{verdict.text}, {_holds(verdict.holds)}" for verdict in verdicts(part)]
        lines.append(_row(name, cells))
    lines += ["", "What each model lacks alone, by how much SNF has more of it:", ""]
    for measure, alone in (("prompt", "sdm"), ("identity", "tdm"), ("sface", "tdm")):
        if measure in evaluation.scores["snf"]:
            _, _, by, text = gain(evaluation, measure, alone)
            lines.append(f"- {MEASURES[measure].title}, snf less {alone}: {by}, {text}")
    lines += [
        "",
        "The other ways to mix, by how much SNF has more. SNF is above where it has clearly more "
        "in at least one measure, and clearly less in none:",
        "",
    ]
    mixes = {other: mix_gains(evaluation, other) for other in MIXES}
    lines += _head("snf less", [*(MEASURES[by.measure].title for by in mixes[MIXES[0]]), "above"])
    for other, gains in mixes.items():
        cells = [f"{by.difference}, {by.text}" for by in gains]
        lines.append(_row(other, [*cells, f"**{is_above(gains)}**"]))
    return lines


def _mix(evaluation: Evaluation, other: str) -> dict[str, Any]:
    gains = mix_gains(evaluation, other)
    found = [by._asdict() | {"difference": by.difference._asdict()} for by in gains]
    return {"above": is_above(gains), "gains": found}


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _measures(evaluation: Evaluation) -> list[str]:
    return [key for key in MEASURES if key in evaluation.scores["snf"]]


def _table(
    head: str,
    names: Sequence[str],
    evaluation: Evaluation,
    labels: Mapping[str, str] | None = None,
) -> list[str]:
    measures = _measures(evaluation)
    lines = _head(head, [MEASURES[key].title for key in measures])
    for name in names:
        columns = evaluation.scores[name]
        cells = [str(mean(columns[key])) for key in measures]
        lines.append(_row((labels or {}).get(name, name), cells))
    return lines


def _head(first: str, cells: Sequence[str]) -> list[str]:
    return [_row(first, cells), _row("---", ["---"] * len(cells))]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
