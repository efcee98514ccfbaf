"""Tables of the scores, and the paper's claim tested against them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fd_jax.config import to_json
from fd_jax.evaluation.cases import Case, Run
from fd_jax.evaluation.intervals import Estimate, difference, mean, ratio
from fd_jax.evaluation.judges import Measure, Scores

TOLERANCE = 0.9  # share of each single model's best measure that SNF has to keep
MIXES = "weighted", "delayed"  # modes that mix both models without SNF


class Evaluation(NamedTuple):
    """Scores of all runs, and what they depend on."""

    cases: Sequence[Case]
    runs: Sequence[Run]
    scores: Mapping[str, Scores]  # by name of the run
    measures: Mapping[str, Measure]
    chance: Mapping[str, float]  # by measure
    settings: Mapping[str, Any]
    judges: Mapping[str, str]  # descriptions by name
    missing: Mapping[str, str]  # why a judge is missing, by its name

    def of(self, rows: Sequence[int]) -> "Evaluation":
        """Returns the evaluation of some of the cases."""
        scores = {
            run: {measure: column[rows] for measure, column in columns.items()}
            for run, columns in self.scores.items()
        }
        return self._replace(cases=[self.cases[i] for i in rows], scores=scores)

    def subsets(self) -> dict[str, "Evaluation"]:
        """Returns all cases, those of each kind, and those of each number of people."""
        kinds = list(dict.fromkeys(case.kind for case in self.cases))
        counts = sorted({len(case.people) for case in self.cases})
        found: dict[str, Evaluation] = {"all": self}
        if len(kinds) > 1:
            for kind in kinds:
                found[kind] = self.of([i for i, c in enumerate(self.cases) if c.kind == kind])
        if len(counts) > 1:
            for count in counts:
                rows = [i for i, c in enumerate(self.cases) if len(c.people) == count]
                found[f"{count} {'person' if count == 1 else 'people'}"] = self.of(rows)
        return found

    def groups(self) -> list[tuple[int, ...]]:
        """Returns the people of each case, by whom intervals are resampled."""
        return [tuple(sorted(case.people)) for case in self.cases]

    def mean(self, run: str, measure: str) -> Estimate:
        """Estimates the mean of a measure."""
        return mean(self.scores[run][measure], self.groups())

    def names(self) -> list[str]:
        """Returns the names of the runs without those that only have other borders."""
        others = {run.name for run in swept(self.runs)[1:]}
        return [name for name in self.scores if name not in others]

    def keys(self, role: str) -> list[str]:
        """Returns the measures of a role."""
        return [key for key, measure in self.measures.items() if measure.role == role]


class Retention(NamedTuple):
    """Share of a single model's measure that SNF keeps."""

    measure: str
    alone: str  # mode of the single model
    text: str  # the share with its interval
    holds: bool  # whether the share is at least TOLERANCE


class Comparison(NamedTuple):
    """Difference of a measure between SNF and another mode, over the same cases."""

    measure: str
    other: str
    difference: Estimate
    text: str


class Table(NamedTuple):
    """A table of a report."""

    title: str
    text: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def swept(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs of SNF, the main one first, then by alpha and beta."""
    snf = [run for run in runs if run.sampler is not None and run.sampler.mode == "snf"]
    return snf[:1] + sorted(snf[1:], key=borders)


def borders(run: Run) -> tuple[float, float]:
    """Returns alpha and beta of a run that is sampled here."""
    assert run.sampler is not None
    return run.sampler.alpha, run.sampler.beta


def has_claim(evaluation: Evaluation) -> bool:
    """Whether SNF and both models alone were evaluated."""
    return {"tdm", "sdm", "snf"} <= set(evaluation.scores)


def retentions(evaluation: Evaluation) -> list[Retention]:
    """Computes the shares of the SDM's identity and of the TDM's prompt that SNF keeps.

    The means decide; the text has the interval of their ratio, over the same cases.
    """
    snf, found = evaluation.scores["snf"], []
    pairs = [(key, "sdm") for key in evaluation.keys("identity")]
    for measure, alone in pairs + [(key, "tdm") for key in evaluation.keys("prompt")]:
        own, others = snf[measure], evaluation.scores[alone][measure]
        text = str(ratio(own, others, evaluation.groups()))
        text = text if others.mean() > 0 else f"{alone} has none"
        holds = bool(others.mean() > 0 and own.mean() >= TOLERANCE * others.mean())
        found.append(Retention(measure, alone, text, holds))
    return found


def compare(evaluation: Evaluation, measure: str, other: str) -> Comparison:
    """Subtracts another mode's measure from that of SNF, and reads the interval."""
    found = difference(
        evaluation.scores["snf"][measure],
        evaluation.scores[other][measure],
        evaluation.groups(),
    )
    text = "more" if found.low > 0 else "less" if found.high < 0 else "no clear difference"
    return Comparison(measure, other, found, text)


def compare_mix(evaluation: Evaluation, other: str) -> list[Comparison]:
    """Compares SNF with another mix, in the measures of identity and prompt."""
    keys = evaluation.keys("identity") + evaluation.keys("prompt")
    return [compare(evaluation, key, other) for key in keys]


def is_above(gains: Sequence[Comparison]) -> str:
    """Decides whether SNF is clearly better in one measure at least, and clearly worse in none."""
    texts = {by.text for by in gains}
    return "no" if "less" in texts else "yes" if "more" in texts else "not clear"


def tables(evaluation: Evaluation) -> list[Table]:
    """Returns all tables of the report."""
    subsets = evaluation.subsets()
    found = _claim(evaluation, subsets) if has_claim(evaluation) else []
    names, titles = evaluation.names(), [m.title for m in evaluation.measures.values()]
    for name, part in subsets.items():
        rows = [[run, *_cells(part, run)] for run in names]
        if name == "all" and evaluation.chance:
            chance = {key: f"{value:.2f}" for key, value in evaluation.chance.items()}
            rows.append(["by chance", *(chance.get(key, "") for key in evaluation.measures)])
        title = "All pictures" if name == "all" else f"Pictures: {name}"
        text = f"{len(part.cases)} pictures of each run."
        found.append(Table(title, text, ["run", *titles], rows))
    sweep = swept(evaluation.runs)
    if len(sweep) > 1:
        rows = [
            ["{:g}, {:g}".format(*borders(run)), *_cells(evaluation, run.name)]
            for run in sorted(sweep, key=borders)
        ]
        text = "SNF with other shares of steps for scene (alpha), fusion and person (beta)."
        found.append(Table("Borders of the stages", text, ["alpha, beta", *titles], rows))
    return found


def results(evaluation: Evaluation) -> dict[str, Any]:
    """Returns all results in JSON's types, with the score of each picture."""
    parts = evaluation.subsets()
    samplers = {run.name: run.sampler for run in evaluation.runs}
    content: dict[str, Any] = {
        "settings": to_json(dict(evaluation.settings)),
        "judges": dict(evaluation.judges),
        "missing_judges": dict(evaluation.missing),
        "measures": {key: m._asdict() for key, m in evaluation.measures.items()},
        "chance": dict(evaluation.chance),
        "cases": [case._asdict() | {"name": case.name} for case in evaluation.cases],
        "means": {
            name: {run: _means(part, run) for run in evaluation.scores}
            for name, part in parts.items()
        },
        "runs": {
            name: {
                "sampler": to_json(samplers.get(name)),
                "scores": {key: _numbers(column) for key, column in columns.items()},
            }
            for name, columns in evaluation.scores.items()
        },
    }
    if has_claim(evaluation):
        content["claim"] = {
            name: [retention._asdict() for retention in retentions(part)]
            for name, part in parts.items()
        }
        content["mixes"] = {
            name: {other: _mix(part, other) for other in MIXES if other in part.scores}
            for name, part in parts.items()
        }
    return content


def _means(part: Evaluation, run: str) -> dict[str, Any]:
    found = {}
    for key in part.measures:
        estimate = part.mean(run, key)
        kept = part.scores[run][key][np.isfinite(part.scores[run][key])]
        std = float(kept.std()) if len(kept) else None
        numbers = {name: _number(value) for name, value in estimate._asdict().items()}
        found[key] = numbers | {"std": std, "count": len(kept)}
    return found


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _numbers(column: np.ndarray) -> list[float | None]:
    return [_number(value) for value in np.asarray(column, np.float64).round(4)]


def _cells(part: Evaluation, run: str) -> list[str]:
    cells = []
    for key in part.measures:
        kept = part.scores[run][key][np.isfinite(part.scores[run][key])]
        cells.append(f"{part.mean(run, key)}, std {kept.std():.2f}" if len(kept) else "")
    return cells


def _claim(evaluation: Evaluation, subsets: Mapping[str, Evaluation]) -> list[Table]:
    found = retentions(evaluation)
    holds = _holds(bool(found) and all(retention.holds for retention in found))
    heads = [f"{evaluation.measures[r.measure].title}, snf by {r.alone}" for r in found]
    rows = [
        [name, *(f"{retention.text}, {_holds(retention.holds)}" for retention in retentions(part))]
        for name, part in subsets.items()
    ]
    text = (
        f"Three stages with noise fusion keep at least {TOLERANCE:.0%} of the SDM's identity and "
        f"of the TDM's prompt: {holds}."
    )
    made = [Table("The claim", text, ["pictures", *heads], rows)]
    keys = evaluation.keys("identity") + evaluation.keys("prompt")
    others = [name for name in ("tdm", "sdm", *MIXES) if name in evaluation.scores]
    rows = []
    for other in others:
        gains = compare_mix(evaluation, other)
        above = is_above(gains) if other in MIXES else ""
        rows.append([f"snf less {other}", *(f"{by.difference}, {by.text}" for by in gains), above])
    text = (
        "By how much SNF has more, over the same cases. It is above another mix where it has "
        "clearly more in at least one measure, and clearly less in none."
    )
    heads = [evaluation.measures[key].title for key in keys]
    return [*made, Table("SNF less the others", text, ["", *heads, "above"], rows)]


def _mix(evaluation: Evaluation, other: str) -> dict[str, Any]:
    gains = compare_mix(evaluation, other)
    found = [by._asdict() | {"difference": by.difference._asdict()} for by in gains]
    return {"above": is_above(gains), "gains": found}


def _holds(holds: bool) -> str:
    return "holds" if holds else "does not hold"
