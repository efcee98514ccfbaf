"""Measures how well pictures keep the people and follow their prompts.

FastComposer's protocol on the bundled people and 40 prompts:

fd-evaluate --sdm sdm.bin --tdm tdm.bin --base stable-diffusion-v1-5
--image-encoder clip-vit-large-patch14 --clip clip-vit-large-patch14 --judges sface.onnx

The same with people of your own, two in each picture:

fd-evaluate ... --people FOLDER --subjects 2 --groups 20

Pictures that another program made from the prompts in OUTPUT/cases.jsonl:

fd-evaluate --pictures FOLDER --clip clip-vit-large-patch14

The same command resumes. The output is report.html, results.json and plots. The bundled models know
painted scenes only: python -m fd_jax.demo.evaluate evaluates them.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from fd_jax import cli, distributed
from fd_jax.config import Config, Range
from fd_jax.data.captions import MAX_SUBJECTS
from fd_jax.data.reference_crops import has_detector
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Run, make_cases
from fd_jax.evaluation.clip import Clip
from fd_jax.evaluation.evaluate import REPORT, Plan, make_runs, sample, score
from fd_jax.evaluation.judges import FaceJudge, Judge, PromptJudge
from fd_jax.evaluation.people import read_people
from fd_jax.evaluation.prompts import PROMPTS, PromptFile, read_prompts
from fd_jax.faces.recognizers import load_recognizer
from fd_jax.files import check_folder, local_path
from fd_jax.inference.inputs import MAX_SEED
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.sources import check_sources
from fd_jax.sampling.stages import Mode, SamplerConfig, Solver
from fd_jax.sharding import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(Config):
    """Options of `fd-evaluate`."""

    sdm: Path | None = None
    """Subject-augmented model, as `fd-sample` takes it; by default the bundled one."""
    tdm: Path | None = None
    """Text-driven model, likewise."""
    base: Path | None = None
    """Folder of Stable Diffusion 1.5, if the models need it."""
    image_encoder: Path | None = None
    """Folder of the CLIP that the image encoder was tuned from, if the models need it."""
    pictures: tuple[Path, ...] = ()
    """Folders of pictures made elsewhere, named as in OUTPUT/cases.jsonl (or by FastComposer's
    evaluation): they are scored in place of any models."""
    people: Path | None = None
    """Folder with a photograph, or a folder of photographs, for each person; a file nouns.json in
    it has the word of each ({"anna": "woman"}). By default the bundled people."""
    prompts: Path | None = None
    """Prompts with {people} in them: a text file, a JSON file of lists by kind, or the data.py of
    FastComposer's evaluation, which is read and not executed. By default 40 of the package."""
    subjects: Annotated[int, Range(1, MAX_SUBJECTS)] = 1
    """People in each picture."""
    groups: Annotated[int, Range(1)] | None = None
    """Largest number of people, or of groups of them, drawn by the seed; by default all."""
    images: Annotated[int, Range(1)] = 4
    """Pictures of each group and prompt."""
    seed: Annotated[int, Range(0, MAX_SEED)] = 0
    """Seed of the first picture, and of drawing groups; each picture has its own."""
    modes: tuple[Mode, ...] = ("snf",)
    """Modes to compare."""
    sweep: bool = False
    """Also sample SNF with other alpha and beta."""
    alpha: float = 0.3
    """Share of the steps before the fusion stage."""
    beta: float = 0.6
    """Share of the steps before the subject stage."""
    num_steps: int = 50
    """Steps of the solver."""
    solver: Solver = "ddim"
    """Solver of the diffusion ODE."""
    guidance_scale: float = 5.0
    """Scale of classifier-free guidance; 1 disables it."""
    tdm_cache_interval: int = 1
    """Evaluations of the TDM between two of its whole UNet (DeepCache); 1 for all whole."""
    sdm_cache_interval: int = 1
    """The same of the SDM."""
    clip: Path | None = None
    """Folder of a CLIP (ViT-L/14 in the papers), which judges prompts."""
    judges: tuple[Path, ...] = ()
    """Face recognizers: OpenCV's face_recognition_sface_2021dec.onnx, or other ONNX files of
    ArcFace's kind (with onnxruntime)."""
    batch_size: Annotated[int, Range(1)] = 4
    """Pictures sampled at a time, rounded up to a multiple of the devices."""
    output: Path = Path("outputs/evaluation")
    """Folder to write to."""
    overwrite: bool = False
    """Replace another evaluation in the folder."""
    processes: Annotated[distributed.Processes, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=distributed.Processes
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sdm, self.tdm, self.base, self.image_encoder)
        if self.pictures and self.sdm is not None:
            raise InputError("expected either --pictures, or models to make them, not both")
        names = [path.resolve().name for path in self.pictures]
        if len(set(names)) < len(names):
            raise InputError(f"--pictures are called {names}, expected folders of different names")
        if not self.modes or len(set(self.modes)) < len(self.modes):
            raise InputError(f"modes are {self.modes}, expected one or more, each once")
        if self.sweep and "snf" not in self.modes:
            raise InputError("--sweep varies the borders of mode snf, which is not among --modes")
        _ = self.sampler  # its checks

    @property
    def sampler(self) -> SamplerConfig:
        """The sampler, of any mode."""
        names = "alpha", "beta", "num_steps", "solver", "guidance_scale"
        names += "tdm_cache_interval", "sdm_cache_interval"
        return SamplerConfig(**{name: getattr(self, name) for name in names})

    def models(self) -> dict[str, Any]:
        """Returns the paths of the models by option."""
        names = "sdm", "tdm", "base", "image_encoder"
        return {name: getattr(self, name) for name in names}


def run(arguments: Arguments) -> None:
    """Evaluates models or pictures.

    Raises:
        InputError: An option cannot be used; most are checked before any model is loaded.
    """
    distributed.join(arguments.processes)
    distributed.enable_compile_cache()
    check_folder(local_path(arguments.output))
    plan = make_plan(arguments)
    begin = time.perf_counter()
    is_first = jax.process_index() == 0
    # Judges before pictures, as a wrong path shows at once then.
    judges, missing = make_judges(arguments, plan) if is_first else ([], {})

    def load() -> FaceDiffuser:
        mesh = make_mesh(jax.local_devices())
        return FaceDiffuser.from_pretrained(**arguments.models(), mesh=mesh, progress=is_first)

    options = {"batch_size": arguments.batch_size, "overwrite": arguments.overwrite}
    sample(plan, load, arguments.output, **options)
    if is_first:
        score(plan, judges, missing, arguments.output)
        seconds = time.perf_counter() - begin
        print(f"evaluated in {seconds:.0f} s: {arguments.output / REPORT}")


def make_plan(arguments: Arguments) -> Plan:
    """Returns people, cases and runs. Raises InputError."""
    given = PromptFile(PROMPTS, {})
    if arguments.prompts is not None:
        given = read_prompts(arguments.prompts)
    people = read_people(arguments.people, given.nouns)
    cases = make_cases(
        people,
        given.prompts,
        subjects=arguments.subjects,
        images=arguments.images,
        most=arguments.groups,
        seed=arguments.seed,
    )
    if arguments.pictures:
        elsewhere = {path.resolve().name: path for path in arguments.pictures}
        runs = [Run(name, None) for name in elsewhere]
        settings = {"pictures": [str(path) for path in arguments.pictures]}
        return Plan(people, cases, runs, settings, elsewhere)
    runs = make_runs(arguments.modes, arguments.sampler, sweep=arguments.sweep)
    models = {name: str(path) for name, path in arguments.models().items() if path is not None}
    settings = {
        "models": models or "of the package",
        "sampler": dataclasses.asdict(arguments.sampler),
        "runs": [run.name for run in runs],
        "seed": arguments.seed,
        "images": arguments.images,
    }
    return Plan(people, cases, runs, settings)


def make_judges(arguments: Arguments, plan: Plan) -> tuple[list[Judge], dict[str, str]]:
    """Returns the judges, and why others are missing. Raises InputError."""
    judges: list[Judge] = []
    missing = {}
    if arguments.clip is not None:
        judges.append(PromptJudge(Clip(arguments.clip, make_mesh(jax.local_devices()))))
    else:
        missing["CLIP"] = "prompts are not judged without --clip FOLDER"
    if has_detector():
        recognizers = [load_recognizer(path) for path in arguments.judges]
        names = [recognizer.name for recognizer in recognizers]
        if len(set(names)) < len(names):
            raise InputError(f"--judges are called {names}, expected files of different names")
        judges.append(FaceJudge(plan.people, recognizers))
        if not recognizers:
            missing["face recognizer"] = "identity is not judged without --judges FILE"
    elif arguments.judges:
        raise InputError("--judges need OpenCV: pip install opencv-python-headless")
    else:
        missing["faces"] = "OpenCV is not installed: pip install opencv-python-headless"
    if not judges:
        raise InputError(f"there is no judge: {'; '.join(missing.values())}")
    return judges, missing


def main() -> None:
    """Runs `fd-evaluate`."""
    cli.run(run, prog="fd-evaluate", description=__doc__, config=(tyro.conf.OmitArgPrefixes,))


if __name__ == "__main__":
    main()
