"""Makes pictures of given people from a prompt, or from a file of prompts.

Without any models, those of the package: small ones, of 64 px, for portraits in front of painted
scenes. Without a prompt, the twelve that they are shown with:

sample.py --trace --output outputs/demo

Pictures of a prompt, with a photograph for each marker <|image|>, in their order:

sample.py --prompt "a man <|image|> and a woman <|image|> in a forest" --reference man.jpg
--reference woman.jpg --num-images 4 --output pictures

Many, from a file with a JSON object per line, such as {"prompt": "a man <|image|> in the snow",
"references": ["man.jpg"], "seed": 3, "output": "snow.png"}; again, it makes what is missing:

sample.py --prompt-file prompts.jsonl --output pictures

The released models:

sample.py --base stable-diffusion-v1-5 --image-encoder clip-vit-large-patch14 --sdm sdm.bin
--tdm tdm.bin --prompt ...

Models of own training, from the folders of their runs, need nothing else:

sample.py --sdm runs/sdm --tdm runs/tdm --prompt ...

Every PNG holds the settings that made it.
"""

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from tqdm import tqdm

from fd_jax import FaceDiffuser, assets, distributed, sharding
from fd_jax.checkpoints.sources import find_sources
from fd_jax.data.captions import strip_markers
from fd_jax.data.photographs import load_photograph
from fd_jax.demo.painters import SCENES
from fd_jax.errors import InputError
from fd_jax.files import check_folder, check_new
from fd_jax.images.png import write_png
from fd_jax.images.sheets import contact_sheet
from fd_jax.images.trace_sheet import trace_sheet
from fd_jax.inference.inputs import make_inputs
from fd_jax.inference.pipeline import SamplingTrace, to_uint8
from fd_jax.inference.prompt_file import PromptLine, read_prompt_file
from fd_jax.sampling.stages import STAGE_NAMES, SamplerConfig

SHEET = "contact_sheet.png"
MAX_ON_SHEET = 64
TRACE_COLUMNS = 8
LIMITS = (
    f"bundled models: 64 px, portraits in front of the {len(SCENES)} painted scenes of "
    "fd_jax/demo/painters.py; what is beyond still gives a picture; fd_jax/assets/demo/README.md "
    "says more"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """What `sample.py` takes."""

    sdm: Path | None = None
    """Subject-augmented model: folder of a training run; or the released model's file, or the
    folder it is in. Without --sdm and --tdm: the small models of the package."""
    tdm: Path | None = None
    """Text-driven model, likewise."""
    base: Path | None = None
    """Folder of Stable Diffusion 1.5, in the layout of diffusers. Needed with an SDM that is no
    training run."""
    image_encoder: Path | None = None
    """Folder of the CLIP that the image encoder was tuned from. Needed with an SDM that is no
    training run."""
    prompt: str | None = None
    """What to show, with <|image|> after each person's word. With the models of the package and
    neither --prompt nor --prompt-file: twelve examples."""
    negative_prompt: str = ""
    """What not to show."""
    references: Annotated[
        tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(aliases=["--reference"])
    ] = ()
    """Photograph of one person; once per person, in the order of the prompt."""
    prompt_file: Path | None = None
    """File of prompts in place of --prompt, one JSON object a line: prompt, references, and
    optionally seed, output, negative_prompt."""
    output: Path = Path("outputs")
    """Folder for the pictures."""
    num_images: int = 1
    """Pictures of the prompt."""
    batch_size: int = 4
    """Pictures made at a time."""
    seed: int = 0
    """Of the noise; picture n of a seed is always the same."""
    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SamplerConfig
    )
    height: int | None = None
    """In pixels; by default what the models were trained for."""
    width: int | None = None
    """In pixels."""
    subject_resolution: int | None = None
    """Side to which the photographs are resized first; by default what the image encoder takes."""
    dtype: str | None = None
    """float32 or bfloat16; by default float32 on a CPU, else bfloat16."""
    trace: bool = False
    """Draw what the models did at some of the steps, too: NAME_trace.png beside NAME.png."""
    overwrite: bool = False
    """Replace pictures that exist already."""
    processes: Annotated[distributed.Processes, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=distributed.Processes
    )

    def __post_init__(self):
        find_sources(self.sdm, self.tdm, self.base, self.image_encoder)
        if self.is_bundled and self.prompt is None and self.prompt_file is None:
            object.__setattr__(self, "prompt_file", assets.PROMPTS)  # past `frozen`
        if (self.prompt is None) == (self.prompt_file is None):
            raise InputError("expected either --prompt or --prompt-file")
        if self.prompt_file is not None:
            for name, default in (("references", ()), ("num_images", 1)):
                if getattr(self, name) != default:
                    option = "--" + name.replace("_", "-")
                    raise InputError(f"{option} goes with --prompt, not with --prompt-file")
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")

    @property
    def is_bundled(self) -> bool:
        """Whether the models are those of the package."""
        return self.sdm is None

    def options(self) -> dict[str, Any]:
        """Returns what is the same for all pictures, as the pipeline takes it."""
        return {
            **dataclasses.asdict(self.sampler),
            "height": self.height,
            "width": self.width,
            "subject_resolution": self.subject_resolution,
        }


def main(arguments: Arguments) -> int:
    """Makes the pictures and returns the exit status."""
    distributed.join(arguments.processes)
    distributed.enable_compile_cache()
    check_folder(arguments.output)
    if arguments.prompt_file is not None:
        return sample_file(arguments)
    return sample_prompt(arguments)


def load(arguments: Arguments, mesh: jax.sharding.Mesh) -> FaceDiffuser:
    """Reads the checkpoints."""
    is_first = jax.process_index() == 0
    if arguments.is_bundled and is_first:
        print(LIMITS)
    return FaceDiffuser.from_pretrained(
        sdm=arguments.sdm,
        tdm=arguments.tdm,
        base=arguments.base,
        image_encoder=arguments.image_encoder,
        dtype=arguments.dtype,
        mesh=mesh,
        progress=is_first,
    )


def settings(pipe: FaceDiffuser, arguments: Arguments, **own: Any) -> dict[str, Any]:
    """Returns what a picture was made with, for its text chunks."""
    height, width = pipe.latent_size(arguments.height, arguments.width)
    scale = pipe.configs.vae.downscale
    paths = {name: getattr(arguments, name) for name in ("base", "sdm", "tdm", "image_encoder")}
    if arguments.is_bundled:
        paths = {"models": "bundled"}
    return {
        **own,
        **arguments.options(),
        "height": height * scale,
        "width": width * scale,
        "subject_resolution": pipe.subject_size(arguments.subject_resolution),
        "dtype": str(pipe.dtype),
        **{name: str(path) for name, path in paths.items() if path is not None},
        "software": f"fd_jax, jax {jax.__version__} on {jax.default_backend()}",
    }


def sample_prompt(arguments: Arguments) -> int:
    """Makes pictures of one prompt, over the devices of all processes."""
    folder, count = arguments.output, arguments.num_images
    paths = [folder / f"{i:04d}.png" for i in range(count)]
    traces = [folder / f"{i:04d}_trace.png" for i in range(count)] if arguments.trace else []
    sheets = [folder / SHEET] if count > 1 else []
    if not arguments.overwrite:
        check_new([*paths, *traces, *sheets])
    references = [load_photograph(path) for path in arguments.references]

    pipe = load(arguments, sharding.make_mesh())
    begin = time.perf_counter()
    made = pipe(
        arguments.prompt,
        references,
        negative_prompt=arguments.negative_prompt,
        num_images=count,
        seed=arguments.seed,
        batch_size=min(arguments.batch_size * pipe.mesh.size, count),
        output_type="np",
        progress=True,
        trace=arguments.trace,
        **arguments.options(),
    )
    images, trace = made if arguments.trace else (made, None)
    if trace is not None:
        drawn = [draw_trace(pipe, trace, i, str(arguments.prompt)) for i in range(count)]
    if jax.process_index() != 0:
        return 0
    seconds = time.perf_counter() - begin
    images = list(to_uint8(images))
    own = {
        "prompt": arguments.prompt,
        "negative_prompt": arguments.negative_prompt,
        "references": [str(path) for path in arguments.references],
        "seed": arguments.seed,
    }
    for i, (path, image) in enumerate(zip(paths, images, strict=True)):
        chunks = settings(pipe, arguments, **own, image_number=i)
        write_png(path, image, chunks, overwrite=arguments.overwrite)
        if trace is not None:
            write_png(traces[i], drawn[i], chunks, overwrite=arguments.overwrite)
    if sheets:
        labels = [f"seed {arguments.seed}, picture {i}" for i in range(count)][:MAX_ON_SHEET]
        shown = [references] * len(labels)
        sheet = contact_sheet(images[:MAX_ON_SHEET], labels, references=shown)
        chunks = settings(pipe, arguments, **own)
        write_png(sheets[0], sheet, chunks, overwrite=arguments.overwrite)
    print(f"made {count} pictures in {seconds:.1f} s: {folder}")
    return 0


def draw_trace(pipe: FaceDiffuser, trace: SamplingTrace, image: int, title: str) -> np.ndarray:
    """Draws what happened at some evaluations of one picture."""
    length = len(trace.steps.stage)
    shown = np.unique(np.linspace(0, length - 1, TRACE_COLUMNS).round().astype(int))
    stages = [STAGE_NAMES[stage] for stage in trace.steps.stage[shown]]
    return trace_sheet(
        to_uint8(pipe.decode(trace.x0[shown, image])),
        trace.tdm_saliency[shown, image],
        trace.sdm_saliency[shown, image],
        trace.sdm_weight[shown, image],
        steps=[f"{i} {stage}" for i, stage in zip(shown, stages, strict=True)],
        title=title,
    )


def sample_file(arguments: Arguments) -> int:
    """Makes the pictures of a prompt file that do not exist yet, each process its share."""
    requests, bad_lines = read_prompt_file(arguments.prompt_file, traces=arguments.trace)
    count = len(requests)
    is_first, folder = jax.process_index() == 0, arguments.output
    failed = 0
    for bad in bad_lines if is_first else ():
        failed += report(bad.line, bad.reason)
    share = requests[jax.process_index() :: jax.process_count()]
    if not arguments.overwrite:
        share = [
            request
            for request in share
            if not all((folder / name).exists() for name in file_names(request, arguments))
        ]
    if not share:
        print(f"nothing to make: {count} pictures of {arguments.prompt_file} exist in {folder}")
        return 1 if failed else 0

    pipe = load(arguments, sharding.make_mesh(jax.local_devices()))
    size = -(-arguments.batch_size // pipe.mesh.size) * pipe.mesh.size
    made = 0
    with tqdm(desc="pictures", total=len(share), unit=" pictures", disable=not is_first) as bar:
        batch: list[tuple[PromptLine, list[np.ndarray]]] = []
        for request in share:
            try:
                batch.append((request, usable_photographs(pipe, request, arguments)))
            except InputError as error:
                failed += report(request.line, str(error))
                bar.update(1)
            if len(batch) == size or (batch and request is share[-1]):
                made += write_batch(pipe, batch, arguments, size)
                bar.update(len(batch))
                batch = []
    print(f"made {made} pictures: {folder}" + f"; {failed} lines failed" * bool(failed))
    write_sheet(requests, arguments)
    return 1 if failed else 0


def file_names(request: PromptLine, arguments: Arguments) -> list[str]:
    """Returns the names of the files that come of a line: the picture, and the trace if wanted."""
    return [request.output] + [request.trace] * arguments.trace


def write_sheet(requests: list[PromptLine], arguments: Arguments) -> None:
    """Writes a contact sheet of a prompt file that is done, if it is short and there is none."""
    paths = [arguments.output / request.output for request in requests]
    sheet = arguments.output / SHEET
    is_done = all(path.exists() for path in paths)
    if jax.process_count() == 1 and is_done and 1 < len(paths) <= MAX_ON_SHEET:
        if sheet.exists() and not arguments.overwrite:
            print(f"{sheet} exists, and is left as it is")
            return
        labels = [strip_markers(request.prompt) for request in requests]
        references = [[load_photograph(path) for path in r.references] for r in requests]
        image = contact_sheet(
            [load_photograph(path) for path in paths], labels, references=references
        )
        chunks = {"prompt_file": str(arguments.prompt_file)}
        write_png(sheet, image, chunks, overwrite=arguments.overwrite)


def report(line: int, reason: str) -> int:
    """Says what is wrong with a line of the prompt file; returns 1, to be counted."""
    tqdm.write(f"line {line}: {reason}", file=sys.stderr)
    return 1


def usable_photographs(
    pipe: FaceDiffuser, request: PromptLine, arguments: Arguments
) -> list[np.ndarray]:
    """Reads the photographs of a line, and checks that the sampler will take it."""
    photographs = [load_photograph(path) for path in request.references]
    make_inputs(
        *(pipe.tokenizer, [request.prompt], [photographs], [request.negative_prompt]),
        subject_resolution=pipe.subject_size(arguments.subject_resolution),
        needs_subjects=arguments.sampler.mode != "tdm",
    )
    return photographs


def write_batch(
    pipe: FaceDiffuser,
    batch: list[tuple[PromptLine, list[np.ndarray]]],
    arguments: Arguments,
    batch_size: int,
) -> int:
    """Makes and writes the pictures of some lines, with their traces; returns how many."""
    requests, photographs = zip(*batch, strict=True)
    seeds = [arguments.seed if r.seed is None else r.seed for r in requests]
    made = pipe(
        [request.prompt for request in requests],
        photographs,
        negative_prompt=[request.negative_prompt for request in requests],
        seed=seeds,
        batch_size=batch_size,
        output_type="np",
        trace=arguments.trace,
        **arguments.options(),
    )
    images, trace = made if arguments.trace else (made, None)
    for i, (request, seed, image) in enumerate(zip(requests, seeds, to_uint8(images), strict=True)):
        own = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "references": [str(path) for path in request.references],
            "seed": seed,
            "image_number": 0,
        }
        chunks = settings(pipe, arguments, **own)
        drawn = [image]
        if trace is not None:
            drawn.append(draw_trace(pipe, trace, i, request.prompt))
        for name, pixels in zip(file_names(request, arguments), drawn, strict=True):
            path = arguments.output / name
            # One of the two may be there already, of a run without --trace or that was cut short.
            if arguments.overwrite or not path.exists():
                write_png(path, pixels, chunks, overwrite=arguments.overwrite)
    return len(batch)


def cli() -> None:
    """Runs the command line."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        arguments = tyro.cli(Arguments, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
        sys.exit(main(arguments))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    cli()
