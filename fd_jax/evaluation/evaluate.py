"""Makes, scores and reports the pictures of an evaluation, whatever its prompts and judges are."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fd_jax.errors import InputError
from fd_jax.evaluation import figures
from fd_jax.evaluation.cases import Case, Person, Pixels, Run
from fd_jax.evaluation.judges import Judge, Scores
from fd_jax.evaluation.page import page
from fd_jax.evaluation.pictures import (
    PICTURES,
    check_settings,
    find_pictures,
    make_pictures,
    read_pictures,
    wait_for_others,
    write_cases,
)
from fd_jax.evaluation.report import Evaluation, results
from fd_jax.files import atomic_file
from fd_jax.images.png import write_png
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.sampling.stages import SamplerConfig, make_steps

REPORT, RESULTS, PLOT, SHEET = "report.html", "results.json", "plot.png", "pictures.png"
# Alpha and beta, besides the main ones.
SWEEP = ((0.1, 0.4), (0.2, 0.5), (0.3, 0.6), (0.4, 0.7), (0.1, 0.8), (0.2, 0.8), (0.0, 1.0))
MODES = ("tdm", "sdm", "weighted", "delayed", "snf")
_AT_A_TIME = 64  # pictures that are scored together
_EXAMPLES = 12  # pictures of each run on the page


class Plan(NamedTuple):
    """What is evaluated.

    Attributes:
        people: All people.
        cases: All pictures.
        runs: Ways to make them.
        settings: What the pictures depend on; an evaluation is resumed only with the same.
        elsewhere: Folders of the pictures that were made elsewhere, by run.
        bounds: What the models' pictures cannot surpass: pictures of all cases that no UNet made,
            by name.
    """

    people: Sequence[Person]
    cases: Sequence[Case]
    runs: Sequence[Run]
    settings: Mapping[str, Any]
    elsewhere: Mapping[str, Path] = {}
    bounds: Mapping[str, Sequence[Pixels]] = {}


def make_runs(modes: Sequence[Any], sampler: SamplerConfig, *, sweep: bool) -> list[Run]:
    """Returns a run of each mode, and of SNF with other borders of its stages.

    Raises:
        InputError: Alpha and beta do not fit.
    """

    def run(name: str, mode: Any, **others: Any) -> Run:
        return Run(name, dataclasses.replace(sampler, mode=mode, **others))

    runs = [run(mode, mode) for mode in modes]
    main = (sampler.alpha, sampler.beta)
    others = [pair for pair in SWEEP if pair != main] if sweep else []
    return runs + [run(f"snf {a:g} {b:g}", "snf", alpha=a, beta=b) for a, b in others]


def sample(
    plan: Plan,
    load: Callable[[], FaceDiffuser],
    folder: Path,
    *,
    batch_size: int,
    overwrite: bool,
) -> None:
    """Makes the pictures that are missing, over the devices of all processes.

    Args:
        plan: What is evaluated.
        load: Reads the models, onto the devices of this process.
        folder: Output folder, which all processes see.
        batch_size: Pictures at a time.
        overwrite: Whether another evaluation in the folder may be replaced.

    Raises:
        InputError: The folder holds another evaluation, or a picture cannot be made.
    """
    runs = [run for run in plan.runs if run.name not in plan.elsewhere]
    folders = {run.name: folder / PICTURES / run.name for run in runs}
    made = [folders[run.name] / f"{case.name}.png" for run in runs for case in plan.cases]
    if jax.process_index() == 0:
        settings = dict(plan.settings) | {
            "cases": len(plan.cases),
            "people": [person.id for person in plan.people],
            "prompts": list(dict.fromkeys(case.prompt for case in plan.cases)),
        }
        check_settings(folder, settings, overwrite=overwrite)
        write_cases(folder, plan.cases, plan.people)
        for path in made if overwrite else ():
            path.unlink(missing_ok=True)
    wait_for_others()
    for where in plan.elsewhere.values():
        find_pictures(where, plan.cases)
    if not all(path.exists() for path in made):
        pipe = load()
        for run in runs:  # before minutes are spent
            assert run.sampler is not None
            make_steps(run.sampler, pipe.schedule)
        total = len(runs) * len(plan.cases[jax.process_index() :: jax.process_count()])
        is_silent = jax.process_index() != 0
        with tqdm(desc="pictures", total=total, unit=" pictures", disable=is_silent) as bar:
            for run in runs:
                bar.set_postfix_str(run.name)
                make_pictures(
                    pipe,
                    run,
                    plan.cases,
                    plan.people,
                    folders[run.name],
                    batch_size=batch_size,
                    bar=bar,
                )
    wait_for_others()


def score(
    plan: Plan, judges: Sequence[Judge], missing: Mapping[str, str], folder: Path
) -> Evaluation:
    """Scores all pictures and writes the report. One process does.

    Args:
        plan: What is evaluated.
        judges: What scores the pictures.
        missing: Why other judges are missing, by their name.
        folder: Output folder, with the pictures.

    Raises:
        InputError: A picture is missing or cannot be read, or a file cannot be written.
    """
    scores: dict[str, Scores] = {}
    total = (len(plan.runs) + len(plan.bounds)) * len(plan.cases)
    shown = figures.cases_on_sheet(plan.cases)
    on_sheet: dict[str, list[Pixels]] = {}
    files: dict[str, list[Path]] = {}
    with tqdm(desc="scoring", total=total, unit=" pictures") as bar:
        for name, pictures in plan.bounds.items():
            chunks = [pictures[i : i + _AT_A_TIME] for i in range(0, len(pictures), _AT_A_TIME)]
            scores[name] = _scored(judges, plan.cases, chunks, bar)
            on_sheet[name] = [pictures[i] for i in shown]
        for run in plan.runs:
            bar.set_postfix_str(run.name)
            where = plan.elsewhere.get(run.name, folder / PICTURES / run.name)
            files[run.name] = find_pictures(where, plan.cases)
            chunks = read_pictures(files[run.name], _AT_A_TIME)
            scores[run.name] = _scored(judges, plan.cases, chunks, bar)
    chance = {key: value for judge in judges for key, value in judge.chance(plan.cases).items()}
    found = Evaluation(
        cases=plan.cases,
        runs=plan.runs,
        scores=scores,
        measures={key: m for judge in judges for key, m in judge.measures.items()},
        chance=chance,
        settings=plan.settings,
        judges={judge.name: judge.description for judge in judges},
        missing=missing,
    )
    for name in found.names():
        if name in files:
            [on_sheet[name]] = read_pictures([files[name][i] for i in shown], len(shown))
    _write(folder, found, plan, files, on_sheet, shown)
    return found


def _scored(judges: Sequence[Judge], cases: Sequence[Case], chunks: Any, bar: tqdm) -> Scores:
    columns: dict[str, list[np.ndarray]] = {}
    first = 0
    for pictures in chunks:
        part = cases[first : first + len(pictures)]
        for judge in judges:
            for key, column in judge(pictures, part).items():
                columns.setdefault(key, []).append(column)
        first += len(pictures)
        bar.update(len(pictures))
    return {key: np.concatenate(parts) for key, parts in columns.items()}


def _write(
    folder: Path,
    found: Evaluation,
    plan: Plan,
    files: Mapping[str, Sequence[Path]],
    on_sheet: Mapping[str, Sequence[Pixels]],
    shown: Sequence[int],
) -> None:
    sheet = figures.sheet(on_sheet, [plan.cases[i] for i in shown], plan.people)
    images = [SHEET]
    step = max(len(plan.cases) // _EXAMPLES, 1)
    examples = {
        name: [_address(path, folder) for path in files[name][::step][:_EXAMPLES]]
        for name in found.names()
        if name in files
    }
    try:
        write_png(folder / SHEET, sheet, {}, overwrite=True)
        if found.keys("identity") and found.keys("prompt"):
            figures.plot(folder / PLOT, found)
            images.insert(0, PLOT)
        for name, text in (
            (RESULTS, json.dumps(results(found), allow_nan=False)),
            (REPORT, page(found, images, examples)),
        ):
            with atomic_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write to the output folder {folder}: {error}") from error


def _address(path: Path, folder: Path) -> str:
    path = path.resolve()
    base = folder.resolve()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_uri()
