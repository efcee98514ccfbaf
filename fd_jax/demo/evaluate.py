"""Evaluates whether three stages with noise fusion beat each model alone and other mixes.

python -m fd_jax.demo.evaluate --output outputs/evaluation
python -m fd_jax.demo.evaluate --sdm runs/sdm --tdm runs/tdm --judges FOLDER

All modes sample the same cases: people of the training set and others, alone and in pairs, in every
scene of `fd_jax.demo.painters`. A small classifier scores the scene, and the SDM's image encoder
the identity; with --judges, SFace or another face recognizer does as well. The same command
resumes. The output is report.html, results.json, plot.png, pictures.png and all pictures.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from fd_jax import cli, distributed
from fd_jax.assets import PEOPLE
from fd_jax.config import Config, Range
from fd_jax.data.reference_crops import has_detector
from fd_jax.demo.grid import Subject, compose_small, make_grid, read_subjects
from fd_jax.demo.judges import EncoderJudge, SceneJudge
from fd_jax.demo.painters import SCENES, Scene
from fd_jax.demo.scene_classifier import load_or_train
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Case, Pixels, Run
from fd_jax.evaluation.evaluate import MODES, REPORT, Plan, make_runs, sample, score
from fd_jax.evaluation.judges import FaceJudge, Judge
from fd_jax.evaluation.report import Evaluation
from fd_jax.faces.recognizers import Recognizer, load_recognizer
from fd_jax.files import check_folder, local_path
from fd_jax.images.pixels import to_uint8
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.sampling.stages import SamplerConfig, Solver

CLASSIFIER = "scenes.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Config):
    """Options of the evaluation."""

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
    """OpenCV's face_recognition_sface_2021dec.onnx, the folder of it, or another recognizer."""
    alpha: float = 0.2
    """Share of the steps before the fusion stage."""
    beta: float = 0.5
    """Share of the steps before the subject stage."""
    num_steps: int = 25
    """Steps of the solver."""
    solver: Solver = "dpmsolver++"
    """Solver of the diffusion ODE."""
    guidance_scale: float = 4.0
    """Scale of classifier-free guidance; 1 disables it."""
    tdm_cache_interval: int = 1
    """Evaluations of the TDM between two of its whole UNet (DeepCache); 1 for all whole."""
    sdm_cache_interval: int = 1
    """The same of the SDM."""
    batch_size: Annotated[int, Range(1)] = 16
    """Batch size, rounded up to a multiple of the devices."""
    output: Path = Path("outputs/evaluation")
    """Folder to write to."""
    overwrite: bool = False
    """Replace another evaluation in the folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.sdm is None) != (self.tdm is None):
            raise InputError("expected both --sdm and --tdm, or neither")

    def runs(self) -> list[Run]:
        """Returns all runs: the modes, then SNF with other borders of its stages."""
        names = "alpha", "beta", "num_steps", "solver", "guidance_scale"
        names += "tdm_cache_interval", "sdm_cache_interval"
        sampler = SamplerConfig(**{name: getattr(self, name) for name in names})
        return make_runs(MODES, sampler, sweep=True)


def run(arguments: Arguments) -> None:
    """Evaluates the models that the command line names.

    Raises:
        InputError: An option cannot be used; most are checked before any model is loaded.
    """
    arguments.runs()
    distributed.enable_compile_cache()
    check_folder(local_path(arguments.output))
    subjects = read_subjects(arguments.people or (PEOPLE,), arguments.max_people)
    recognizers = [] if arguments.judges is None else [load_recognizer(arguments.judges)]
    models = {} if arguments.sdm is None else {"sdm": arguments.sdm, "tdm": arguments.tdm}
    pipe = FaceDiffuser.from_pretrained(**models, progress=True)
    begin = time.perf_counter()
    evaluate(pipe, arguments, subjects, recognizers)
    seconds = time.perf_counter() - begin
    print(f"evaluated in {seconds:.0f} s: {arguments.output / REPORT}")


def evaluate(
    pipe: FaceDiffuser,
    arguments: Arguments,
    subjects: Sequence[Subject],
    recognizers: Sequence[Recognizer] = (),
    scenes: Sequence[Scene] = SCENES,
    **training: Any,
) -> Evaluation:
    """Samples and scores all cases, and writes the output folder.

    Args:
        pipe: Pipeline of both models.
        arguments: Options; models and people that they name are ignored.
        subjects: People to insert.
        recognizers: Judges of faces.
        scenes: Scenes to place the people in.
        training: Options of the scene classifier, see `load_or_train`.

    Raises:
        InputError: Solver and noise schedule do not fit, or a file cannot be written.
    """
    people = [subject.person for subject in subjects]
    cases = make_grid(subjects, scenes, arguments.seeds)
    side = pipe.latent_size(None, None)[0] * pipe.architecture.vae.downscale
    plan = Plan(
        people,
        cases,
        arguments.runs(),
        _settings(pipe, arguments, subjects, side),
        bounds=_bounds(pipe, cases, subjects, scenes, side),
    )
    folder = arguments.output
    options = {"batch_size": arguments.batch_size, "overwrite": arguments.overwrite}
    sample(plan, lambda: pipe, folder, **options)
    classifier = load_or_train(folder / CLASSIFIER, scenes, side, progress=True, **training)
    judges: list[Judge] = [EncoderJudge(pipe, people), SceneJudge(classifier)]
    missing = {}
    if has_detector():
        judges.append(FaceJudge(people, recognizers))
    else:
        missing["faces"] = "OpenCV is not installed: pip install opencv-python-headless"
    return score(plan, judges, missing, folder)


def _bounds(
    pipe: FaceDiffuser,
    cases: Sequence[Case],
    subjects: Sequence[Subject],
    scenes: Sequence[Scene],
    side: int,
) -> dict[str, list[Pixels]]:
    """Composes the cases as the images of training are, and sends them through the VAE.

    The second tells how much of a low identity the VAE is to blame for.
    """
    pictures = []
    for case in cases:
        cutouts = [subjects[person].cutout for person in case.people]
        # Seeds that the classifier was not trained on.
        rng = np.random.default_rng([2, case.seed])
        pictures.append(compose_small(scenes[case.prompt_number], cutouts, rng, side))
    through = to_uint8(pipe.reconstruct(np.stack(pictures)))
    return {"composed": pictures, "autoencoder": list(through)}


def _settings(
    pipe: FaceDiffuser, arguments: Arguments, subjects: Sequence[Subject], side: int
) -> dict[str, Any]:
    seen = {
        kind: " ".join(subject.person.id for subject in subjects if subject.kind == kind)
        for kind in ("seen", "unseen")
    }
    sampler = ("num_steps", "solver", "guidance_scale", "alpha", "beta", "seeds")
    return {
        "sdm": "of the package" if arguments.sdm is None else str(arguments.sdm),
        "tdm": "of the package" if arguments.tdm is None else str(arguments.tdm),
        **seen,
        **{name: getattr(arguments, name) for name in sampler},
        "side": side,
        "dtype": str(pipe.dtype),
        "software": f"fd_jax, jax {jax.__version__} on {jax.default_backend()}",
    }


def main() -> None:
    """Runs the evaluation."""
    cli.run(run, description=__doc__)


if __name__ == "__main__":
    main()
