"""Evaluates whether three stages with noise fusion beat each model alone and other mixes.

fd-evaluate --output outputs/evaluation
fd-evaluate --sdm runs/sdm --tdm runs/tdm --judges FOLDER

All modes sample the same cases: people of the training set and others, alone and in pairs, in every
scene of `fd_jax.demo.painters`. A small classifier scores the scene, and the SDM's image encoder
the identity; with --judges FOLDER, which holds OpenCV's YuNet and SFace, these do as well. The
output is report.md, results.json, plot.png and modes.png.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from fd_jax import cli, distributed
from fd_jax.assets import PEOPLE
from fd_jax.config import Config, Range
from fd_jax.demo import figures
from fd_jax.demo.grid import EvalCase, Pixels, Subject, compose_small, make_grid, read_subjects
from fd_jax.demo.painters import SCENES, Scene
from fd_jax.demo.report import CEILING, Evaluation, Run, markdown, results
from fd_jax.demo.scene_classifier import load_or_train
from fd_jax.demo.scoring import Scorer
from fd_jax.errors import InputError
from fd_jax.evaluation.judges import ClipIdentity, FaceRecognizer
from fd_jax.files import check_folder, check_new
from fd_jax.images.png import write_png
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.sampling.stages import SamplerConfig, Solver, make_steps

SWEEP = (
    *((0.1, 0.4), (0.2, 0.5), (0.3, 0.6), (0.4, 0.7)),
    *((0.1, 0.8), (0.2, 0.8), (0.0, 1.0)),
)
REPORT, RESULTS, PLOT, SHEET = "report.md", "results.json", "plot.png", "modes.png"
PICTURES = "pictures"  # a folder for each mode
CLASSIFIER = "scenes.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Config):
    """Options of `fd-evaluate`."""

    sdm: Path | None = None
    """Folder of the training run of the subject-augmented model; by default the bundled one."""
    tdm: Path | None = None
    """Folder of the training run of the text-driven model; by default the bundled one."""
    people: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Folder in the layout of FFHQ-FastComposer, with people of the training set on its train list
    and others on its test list; may be repeated. By default the bundled people."""
    max_people: Annotated[int, Range(2)] = 8
    """Largest number of people of each list, evenly spaced over it."""
    seeds: Annotated[int, Range(1)] = 2
    """Pictures per scene, list and number of people."""
    judges: Path | None = None
    """Folder of face_detection_yunet_2023mar.onnx and face_recognition_sface_2021dec.onnx."""
    alpha: float = 0.3
    """Share of the steps before the fusion stage."""
    beta: float = 0.6
    """Share of the steps before the subject stage."""
    num_steps: int = 25
    """Steps of the solver."""
    solver: Solver = "dpmsolver++"
    """Solver of the diffusion ODE."""
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance; 1 disables it."""
    batch_size: Annotated[int, Range(1)] = 16
    """Batch size, rounded up to a multiple of the devices."""
    output: Path = Path("outputs/evaluation")
    """Folder to write to."""
    keep_pictures: bool = False
    """Keep all pictures, in a folder per mode."""
    overwrite: bool = False
    """Replace an earlier evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sdm is None) != (self.tdm is None):
            raise InputError("expected both --sdm and --tdm, or neither")

    def runs(self) -> list[Run]:
        """Returns all runs: the modes, then SNF with other borders of its stages."""
        common = {key: getattr(self, key) for key in ("num_steps", "solver", "guidance_scale")}

        def run(name: str, mode: Any, alpha: float, beta: float) -> Run:
            return Run(name, SamplerConfig(mode=mode, alpha=alpha, beta=beta, **common))

        main = (self.alpha, self.beta)
        runs = [run(mode, mode, *main) for mode in ("tdm", "sdm", "weighted", "delayed", "snf")]
        others = [borders for borders in SWEEP if borders != main]
        return runs + [run(f"snf {a:g} {b:g}", "snf", a, b) for a, b in others]


def run(arguments: Arguments) -> None:
    """Evaluates the models that the command line names.

    Raises:
        InputError: An option cannot be used; most are checked before any model is loaded.
    """
    arguments.runs()
    distributed.enable_compile_cache()
    check_folder(arguments.output)
    if not arguments.overwrite:
        names = [REPORT, RESULTS, PLOT, SHEET]
        if arguments.keep_pictures:
            names.append(PICTURES)
        check_new([arguments.output / name for name in names])
    subjects = read_subjects(arguments.people or (PEOPLE,), arguments.max_people)
    face_recognizer = None
    if arguments.judges is not None:
        photographs = [subject.photograph for subject in subjects]
        names = [subject.id for subject in subjects]
        face_recognizer = FaceRecognizer(arguments.judges, photographs, names)
    models = {} if arguments.sdm is None else {"sdm": arguments.sdm, "tdm": arguments.tdm}
    pipe = FaceDiffuser.from_pretrained(**models, progress=True)
    begin = time.perf_counter()
    evaluate(pipe, arguments, subjects, face_recognizer)
    seconds = time.perf_counter() - begin
    print(f"evaluated in {seconds:.0f} s: {arguments.output / REPORT}")


def evaluate(
    pipe: FaceDiffuser,
    arguments: Arguments,
    subjects: Sequence[Subject],
    face_recognizer: FaceRecognizer | None,
    scenes: Sequence[Scene] = SCENES,
    **training: Any,
) -> Evaluation:
    """Samples and scores all cases, and writes the output folder.

    Args:
        pipe: Pipeline of both models.
        arguments: Options; models and people that they name are ignored.
        subjects: People to insert.
        face_recognizer: Judge of faces with the subjects as references, or None.
        scenes: Scenes to place the people in.
        training: Options of the scene classifier, see `load_or_train`.

    Raises:
        InputError: Solver and noise schedule do not fit, or a file cannot be written.
    """
    runs, cases = arguments.runs(), make_grid(subjects, scenes, arguments.seeds)
    evaluations = [make_steps(run.sampler, pipe.schedule).num_evaluations for run in runs]
    side = pipe.latent_size(None, None)[0] * pipe.architecture.vae.downscale
    seconds, begin = {}, time.perf_counter()
    classifier = load_or_train(
        arguments.output / CLASSIFIER, scenes, side, progress=True, **training
    )
    seconds["classifier"] = time.perf_counter() - begin
    clip_identity = ClipIdentity(pipe, [subject.photograph for subject in subjects])
    scorer = Scorer(subjects, classifier, clip_identity, face_recognizer)

    shown, scores = figures.cases_on_sheet(cases), {}
    pictures = _ceiling(cases, subjects, scenes, side)
    scores[CEILING] = scorer(pictures, cases)
    on_sheet = {CEILING: [pictures[i] for i in shown]}
    with tqdm(
        desc="making pictures", total=sum(evaluations) * len(cases), unit=" evaluations"
    ) as bar:
        for run, count in zip(runs, evaluations, strict=True):
            begin = time.perf_counter()
            bar.set_postfix_str(run.name)
            pictures = _make(pipe, run, cases, subjects, arguments.batch_size, bar, count)
            scores[run.name] = scorer(pictures, cases)
            seconds[run.name] = time.perf_counter() - begin
            if run.name == run.sampler.mode:
                on_sheet[run.name] = [pictures[i] for i in shown]
            if arguments.keep_pictures:
                _keep(arguments.output / PICTURES / run.name, pictures, cases, run)

    settings = _settings(pipe, arguments, subjects, side)
    found = Evaluation(cases, runs, scores, scorer.chance(cases), classifier.accuracy, settings)
    _write(arguments.output, found, seconds)
    sheet = figures.sheet(on_sheet, [cases[i] for i in shown], subjects)
    write_png(arguments.output / SHEET, sheet, found.settings, overwrite=True)
    return found


def _ceiling(
    cases: Sequence[EvalCase], subjects: Sequence[Subject], scenes: Sequence[Scene], side: int
) -> list[Pixels]:
    """Composes the cases without models, as the images of training are."""
    pictures = []
    for case in cases:
        cutouts = [subjects[person].cutout for person in case.people]
        # Seeds that the classifier was not trained on.
        rng = np.random.default_rng([2, case.seed])
        pictures.append(compose_small(scenes[case.scene], cutouts, rng, side))
    return pictures


def _make(
    pipe: FaceDiffuser,
    run: Run,
    cases: Sequence[EvalCase],
    subjects: Sequence[Subject],
    batch_size: int,
    bar: tqdm,
    evaluations: int,
) -> list[Pixels]:
    pictures = []
    batch_size = -(-batch_size // pipe.mesh.size) * pipe.mesh.size
    for first in range(0, len(cases), batch_size):
        batch = cases[first : first + batch_size]
        samples = pipe(
            [case.prompt for case in batch],
            [[subjects[person].photograph for person in case.people] for case in batch],
            seed=[case.seed for case in batch],
            sampler=run.sampler,
            batch_size=batch_size,
        )
        pictures += [np.asarray(image) for image in samples]
        bar.update(evaluations * len(batch))
    return pictures


def _keep(folder: Path, pictures: Sequence[Pixels], cases: Sequence[EvalCase], run: Run) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, case) in enumerate(zip(pictures, cases, strict=True)):
        settings = {"prompt": case.prompt, "seed": case.seed, **dataclasses.asdict(run.sampler)}
        write_png(folder / f"{i:04d}.png", picture, settings, overwrite=True)


def _settings(
    pipe: FaceDiffuser, arguments: Arguments, subjects: Sequence[Subject], side: int
) -> dict[str, Any]:
    people = {
        kind: " ".join(subject.id for subject in subjects if subject.kind == kind)
        for kind in ("seen", "unseen")
    }
    sampler = ("num_steps", "solver", "guidance_scale", "alpha", "beta", "seeds")
    return {
        "sdm": "of the package" if arguments.sdm is None else str(arguments.sdm),
        "tdm": "of the package" if arguments.tdm is None else str(arguments.tdm),
        **people,
        **{name: getattr(arguments, name) for name in sampler},
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


def main() -> None:
    """Runs `fd-evaluate`."""
    cli.run(run, prog="fd-evaluate", description=__doc__)


if __name__ == "__main__":
    main()
