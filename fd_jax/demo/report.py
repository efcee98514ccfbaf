"""Writes the scores of all modes as a report, and tests the paper's claim against them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fd_jax.demo.grid import EvalCase
from fd_jax.demo.scoring import MEASURES, Scores
from fd_jax.evaluation.intervals import Estimate, difference, mean, ratio
from fd_jax.sampling.stages import SamplerConfig

CEILING = "ceiling"  # name of images composed without any model: people in painted scenes
TOLERANCE = 0.9  # share of each single model's best measure that SNF has to keep
MIXES = "weighted", "delayed"  # modes that mix both models without SNF

SUBSETS: dict[str, Callable[[EvalCase], bool]] = {
    "all": lambda case: True,
    "seen": lambda case: case.kind == "seen",
    "unseen": lambda case: case.kind == "unseen",
    "one": lambda case: len(case.people) == 1,
    "two": lambda case: len(case.people) == 2,
}
_TITLES = {
    "all": "All pictures",
    "seen": "People seen in training",
    "unseen": "People not seen in training",
    "one": "One person",
    "two": "Two people",
}


class Run(NamedTuple):
    """A mode and its sampler."""

    name: str
    sampler: SamplerConfig


class Evaluation(NamedTuple):
    """Scores of all runs, and what they depend on."""

    cases: Sequence[EvalCase]
    runs: Sequence[Run]
    scores: Mapping[str, Scores]  # by name of the run, or CEILING
    chance: Mapping[str, float]  # by measure
    classifier_accuracy: float
    settings: Mapping[str, Any]

    def subset(self, name: str) -> "Evaluation":
        """Returns the evaluation of one of `SUBSETS`."""
        rows = [i for i, case in enumerate(self.cases) if SUBSETS[name](case)]
        scores = {
            run: {measure: column[rows] for measure, column in columns.items()}
            for run, columns in self.scores.items()
        }
        return self._replace(cases=[self.cases[i] for i in rows], scores=scores)


class Retention(NamedTuple):
    """Share of a single model's measure that SNF keeps."""

    measure: str
    alone: str  # mode of the single model
    text: str  # the share with its interval
    holds: bool  # whether the share is at least TOLERANCE


def retentions(evaluation: Evaluation) -> list[Retention]:
    """Computes the shares of the SDM's identity and of the TDM's prompt accuracy that SNF keeps.

    The means decide; the text has the interval of their ratio, over the same cases.
    """
    snf, found = evaluation.scores["snf"], []
    for measure, alone in (("identity", "sdm"), ("sface", "sdm"), ("prompt", "tdm")):
        if measure in snf:
            own, others = snf[measure], evaluation.scores[alone][measure]
            text = str(ratio(own, others)) if others.mean() > 0 else f"{alone} has none"
            holds = bool(others.mean() > 0 and own.mean() >= TOLERANCE * others.mean())
            found.append(Retention(measure, alone, text, holds))
    return found


class Comparison(NamedTuple):
    """Difference of a measure between SNF and another mode, over the same cases."""

    measure: str
    other: str
    difference: Estimate
    text: str


def compare(evaluation: Evaluation, measure: str, other: str) -> Comparison:
    """Subtracts another mode's measure from that of SNF, and reads the interval."""
    found = difference(evaluation.scores["snf"][measure], evaluation.scores[other][measure])
    text = "more" if found.low > 0 else "less" if found.high < 0 else "no clear difference"
    return Comparison(measure, other, found, text)


def compare_mix(evaluation: Evaluation, other: str) -> list[Comparison]:
    """Compares SNF with another mix, in the measures of identity and prompt."""
    measures = ("identity", "identified", "sface", "prompt")
    return [compare(evaluation, key, other) for key in measures if key in evaluation.scores["snf"]]


def is_above(gains: Sequence[Comparison]) -> str:
    """Decides whether SNF is clearly better in one measure at least, and clearly worse in none."""
    texts = {by.text for by in gains}
    return "no" if "less" in texts else "yes" if "more" in texts else "not clear"


def markdown(evaluation: Evaluation) -> str:
    """Formats the report as Markdown."""
    subsets = {name: evaluation.subset(name) for name in SUBSETS}
    subsets = {name: part for name, part in subsets.items() if part.cases}
    lines = [
        "# Evaluation",
        "",
        f"{len(evaluation.cases)} pictures of each mode, of the same prompts, people and noise. In "
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
        lines += ["", f"## {_TITLES[name]}", "", f"{len(part.cases)} pictures of each mode.", ""]
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
    """Returns all results in JSON's types, with the score of each image."""
    runs = {run.name: run.sampler for run in evaluation.runs}
    parts = {name: evaluation.subset(name) for name in SUBSETS}
    return {
        "settings": dict(evaluation.settings),
        "classifier_accuracy": evaluation.classifier_accuracy,
        "chance": dict(evaluation.chance),
        "claim": {
            name: [retention._asdict() for retention in retentions(part)]
            for name, part in parts.items()
            if part.cases
        },
        "mixes": {
            name: {other: _mix(part, other) for other in MIXES}
            for name, part in parts.items()
            if part.cases
        },
        "cases": [case._asdict() for case in evaluation.cases],
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
    """Returns the runs of SNF, sorted by alpha and beta."""
    snf = [run for run in runs if run.sampler.mode == "snf"]
    return sorted(snf, key=lambda run: (run.sampler.alpha, run.sampler.beta))


def _claim(evaluation: Evaluation, subsets: Mapping[str, Evaluation]) -> list[str]:
    found = retentions(evaluation)
    lines = [
        "",
        "## The claim",
        "",
        f"Three stages with noise fusion keep at least {TOLERANCE:.0%} of the SDM's identity and "
        f"of the TDM's prompt accuracy: **{_holds(all(retention.holds for retention in found))}**.",
        "",
    ]
    heads = [f"{MEASURES[v.measure].title}, snf by {v.alone}" for v in found]
    lines += _head("pictures", heads)
    for name, part in subsets.items():
        cells = [f"{retention.text}, {_holds(retention.holds)}" for retention in retentions(part)]
        lines.append(_row(name, cells))
    lines += ["", "What each model lacks alone, by how much SNF has more of it:", ""]
    for measure, alone in (("prompt", "sdm"), ("identity", "tdm"), ("sface", "tdm")):
        if measure in evaluation.scores["snf"]:
            _, _, by, text = compare(evaluation, measure, alone)
            lines.append(f"- {MEASURES[measure].title}, snf less {alone}: {by}, {text}")
    lines += [
        "",
        "The other ways to mix, by how much SNF has more. SNF is above where it has clearly more "
        "in at least one measure, and clearly less in none:",
        "",
    ]
    mixes = {other: compare_mix(evaluation, other) for other in MIXES}
    lines += _head("snf less", [*(MEASURES[by.measure].title for by in mixes[MIXES[0]]), "above"])
    for other, gains in mixes.items():
        cells = [f"{by.difference}, {by.text}" for by in gains]
        lines.append(_row(other, [*cells, f"**{is_above(gains)}**"]))
    return lines


def _mix(evaluation: Evaluation, other: str) -> dict[str, Any]:
    gains = compare_mix(evaluation, other)
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
