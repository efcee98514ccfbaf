"""Measures whether three stages with noise fusion beat each model alone and other ways to mix.

    python -m fd_jax.demo.evaluate
    python -m fd_jax.demo.evaluate --sdm runs/sdm --tdm runs/tdm --judges FOLDER

Every mode makes the same pictures: of people seen in training and not, alone and two together, in
all scenes of `fd_jax.demo.painters`. A small classifier says whether a picture shows its scene, and
the SDM's image encoder whether it shows its people; with --judges FOLDER, which holds OpenCV's
models YuNet and SFace, so do these. The output is report.md, results.json, plot.png and modes.png.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from fd_jax import distributed
from fd_jax.assets import PEOPLE
from fd_jax.demo import figures
from fd_jax.demo.grid import Cell, Pixels, Subject, compose_small, make_grid, read_subjects
from fd_jax.demo.painters import SCENES, Scene
from fd_jax.demo.report import CEILING, Evaluation, Run, markdown, results
from fd_jax.demo.scene_classifier import load_or_train
from fd_jax.demo.scoring import Scorer
from fd_jax.errors import InputError
from fd_jax.evaluation.identity import Judge, Tower, check_judges
from fd_jax.files import check_folder, check_new
from fd_jax.images.png import write_png
from fd_jax.inference import validation
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.sampling.stages import SamplerConfig, make_steps

SWEEP = (
    *((0.1, 0.4), (0.2, 0.5), (0.3, 0.6), (0.4, 0.7)),
    *((0.1, 0.8), (0.2, 0.8), (0.0, 1.0)),
)
REPORT, RESULTS, PLOT, SHEET = "report.md", "results.json", "plot.png", "modes.png"
PICTURES = "pictures"  # a folder for each mode
CLASSIFIER = "scenes.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `python -m fd_jax.demo.evaluate` takes."""

    sdm: Path | None = None
    """Subject-augmented model: folder of a training run; by default that of the package."""
    tdm: Path | None = None
    """Text-driven model, likewise."""
    people: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Folder in the layout of FFHQ-FastComposer, whose train list the SDM saw in training and whose
    test list it did not; may be repeated. By default the bundled people."""
    max_people: int = 8
    """People of each list; if there are more, they are spread over it."""
    seeds: int = 2
    """Pictures of each scene, kind and number of people."""
    judges: Path | None = None
    """Folder with face_detection_yunet_2023mar.onnx and face_recognition_sface_2021dec.onnx."""
    alpha: float = 0.3
    """Share of the steps after which the fusion stage begins."""
    beta: float = 0.6
    """Share of the steps after which the subject stage begins."""
    num_steps: int = 25
    """Steps of the solver."""
    solver: str = "dpmsolver++"
    """ddim, pndm or dpmsolver++."""
    guidance_scale: float = 3.0
    """Of classifier-free guidance; 1 is none."""
    batch_size: int = 16
    """Pictures made at a time, rounded up to a multiple of the devices."""
    output: Path = Path("outputs/evaluation")
    """Folder to write to."""
    keep_pictures: bool = False
    """Keep all pictures, in a folder for each mode."""
    overwrite: bool = False
    """Replace an earlier evaluation."""

    def check(self) -> None:
        """Raises InputError if a value cannot be used. Tyro would say less, and exit with 2."""
        if (self.sdm is None) != (self.tdm is None):
            raise InputError("expected both --sdm and --tdm, or neither")
        for name, low in (("max_people", 2), ("seeds", 1), ("batch_size", 1)):
            validation.whole(name, getattr(self, name), low)
        self.runs()

    def runs(self) -> list[Run]:
        """Returns all ways to make the pictures: the modes, then SNF with other borders."""
        common = {key: getattr(self, key) for key in ("num_steps", "solver", "guidance_scale")}

        def run(name: str, mode: str, alpha: float, beta: float) -> Run:
            return Run(name, SamplerConfig(mode=mode, alpha=alpha, beta=beta, **common))

        main = self.alpha, self.beta
        runs = [run(mode, mode, *main) for mode in ("tdm", "sdm", "weighted", "delayed", "snf")]
        others = [borders for borders in SWEEP if borders != main]
        return runs + [run(f"snf {a:g} {b:g}", "snf", a, b) for a, b in others]


def main(given: Arguments) -> None:
    """Evaluates what the command line asks for. Raises InputError before anything takes long."""
    given.check()
    distributed.enable_compile_cache()
    check_folder(given.output)
    if not given.overwrite:
        names = [REPORT, RESULTS, PLOT, SHEET] + [PICTURES] * given.keep_pictures
        check_new([given.output / name for name in names])
    subjects = read_subjects(given.people or (PEOPLE,), given.max_people)
    judge = None
    if given.judges is not None:
        check_judges(given.judges)
        photographs = [subject.photograph for subject in subjects]
        judge = Judge(given.judges, photographs, [subject.id for subject in subjects])
    models = {} if given.sdm is None else {"sdm": given.sdm, "tdm": given.tdm}
    pipe = FaceDiffuser.from_pretrained(**models, progress=True)
    begin = time.perf_counter()
    evaluate(pipe, given, subjects, judge)
    print(f"evaluated in {time.perf_counter() - begin:.0f} s: {given.output / REPORT}")


def evaluate(
    pipe: FaceDiffuser,
    given: Arguments,
    subjects: Sequence[Subject],
    judge: Judge | None,
    scenes: Sequence[Scene] = SCENES,
    **training: Any,
) -> Evaluation:
    """Makes and scores all pictures, and writes the output folder.

    Args:
        pipe: Both models.
        given: Config. The models and people that they name are not read.
        subjects: The people.
        judge: Of their faces, if there is one.
        scenes: Where to stand them.
        training: Of the classifier of scenes, see `load_or_train`.

    Raises:
        InputError: Solver and noise schedule do not fit, or a file cannot be written.
    """
    runs, cells = given.runs(), make_grid(subjects, scenes, given.seeds)
    evaluations = [make_steps(run.sampler, pipe.schedule).num_evaluations for run in runs]
    side = pipe.latent_size(None, None)[0] * pipe.architecture.vae.downscale
    seconds, begin = {}, time.perf_counter()
    classifier = load_or_train(given.output / CLASSIFIER, scenes, side, progress=True, **training)
    seconds["classifier"] = time.perf_counter() - begin
    tower = Tower(pipe, [subject.photograph for subject in subjects])
    scorer = Scorer(subjects, classifier, tower, judge)

    shown, scores = figures.chosen_cells(cells), {}
    pictures = _ceiling(cells, subjects, scenes, side)
    scores[CEILING] = scorer(pictures, cells)
    on_sheet = {CEILING: [pictures[i] for i in shown]}
    with tqdm(
        desc="making pictures", total=sum(evaluations) * len(cells), unit=" evaluations"
    ) as bar:
        for run, count in zip(runs, evaluations, strict=True):
            begin = time.perf_counter()
            bar.set_postfix_str(run.name)
            pictures = _make(pipe, run, cells, subjects, given.batch_size, bar, count)
            scores[run.name] = scorer(pictures, cells)
            seconds[run.name] = time.perf_counter() - begin
            if run.name == run.sampler.mode:
                on_sheet[run.name] = [pictures[i] for i in shown]
            if given.keep_pictures:
                _keep(given.output / PICTURES / run.name, pictures, cells, run)

    settings = _settings(pipe, given, subjects, side)
    found = Evaluation(cells, runs, scores, scorer.chance(cells), classifier.accuracy, settings)
    _write(given.output, found, seconds)
    sheet = figures.sheet(on_sheet, [cells[i] for i in shown], subjects)
    write_png(given.output / SHEET, sheet, found.settings, overwrite=True)
    return found


def _ceiling(
    cells: Sequence[Cell], subjects: Sequence[Subject], scenes: Sequence[Scene], side: int
) -> list[Pixels]:
    """What the cells ask for, as code composes the pictures of training."""
    pictures = []
    for cell in cells:
        cutouts = [subjects[person].cutout for person in cell.people]
        # Other numbers than those that the classifier learned from.
        rng = np.random.default_rng([2, cell.seed])
        pictures.append(compose_small(scenes[cell.scene], cutouts, rng, side))
    return pictures


def _make(
    pipe: FaceDiffuser,
    run: Run,
    cells: Sequence[Cell],
    subjects: Sequence[Subject],
    batch_size: int,
    bar: tqdm,
    evaluations: int,
) -> list[Pixels]:
    pictures = []
    batch_size = -(-batch_size // pipe.mesh.size) * pipe.mesh.size
    for first in range(0, len(cells), batch_size):
        batch = cells[first : first + batch_size]
        samples = pipe(
            [cell.prompt for cell in batch],
            [[subjects[person].photograph for person in cell.people] for cell in batch],
            seed=[cell.seed for cell in batch],
            sampler=run.sampler,
            batch_size=batch_size,
        )
        pictures += [np.asarray(image) for image in samples]
        bar.update(evaluations * len(batch))
    return pictures


def _keep(folder: Path, pictures: Sequence[Pixels], cells: Sequence[Cell], run: Run) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, cell) in enumerate(zip(pictures, cells, strict=True)):
        settings = {"prompt": cell.prompt, "seed": cell.seed, **dataclasses.asdict(run.sampler)}
        write_png(folder / f"{i:04d}.png", picture, settings, overwrite=True)


def _settings(
    pipe: FaceDiffuser, given: Arguments, subjects: Sequence[Subject], side: int
) -> dict[str, Any]:
    people = {
        kind: " ".join(subject.id for subject in subjects if subject.kind == kind)
        for kind in ("seen", "unseen")
    }
    sampler = ("num_steps", "solver", "guidance_scale", "alpha", "beta", "seeds")
    return {
        "sdm": "of the package" if given.sdm is None else str(given.sdm),
        "tdm": "of the package" if given.tdm is None else str(given.tdm),
        **people,
        **{name: getattr(given, name) for name in sampler},
        "side": side,
        "dtype": str(pipe.dtype),
        "software": f"fd_jax, jax {jax.__version__} on {jax.default_backend()}",
    }


def _write(folder: Path, found: Evaluation, seconds: Mapping[str, float]) -> None:
    content = results(found) | {"seconds": {name: round(x, 1) for name, x in seconds.items()}}
    try:
        (folder / RESULTS).write_text(json.dumps(content))
        (folder / REPORT).write_text(markdown(found))
        figures.plot(folder / PLOT, found)
    except OSError as error:
        raise InputError(f"cannot write to the output folder {folder}: {error}") from error


def cli() -> None:
    """Runs the command line."""
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli()
