"""Samples pictures of given people from a prompt, or from a file of prompts.

Without any models, those of the package: small ones, of 64 px, for portraits in front of painted
scenes. Without a prompt, the twelve examples that they are shown with:

fd-sample --trace --output outputs/demo

Pictures of a prompt, with a photograph for each marker <|image|>, in their order:

fd-sample --prompt "a man <|image|> and a woman <|image|> in a forest" --reference man.jpg
--reference woman.jpg --num-images 4 --output pictures

Many, from a file with a JSON object per line, such as {"prompt": "a man <|image|> in the snow",
"references": ["man.jpg"], "seed": 3, "output": "snow.png"}:

fd-sample --prompt-file prompts.jsonl --output pictures

The released models:

fd-sample --base stable-diffusion-v1-5 --image-encoder clip-vit-large-patch14 --sdm sdm.bin
--tdm tdm.bin --prompt ...

Models trained with this code need only their run folders:

fd-sample --sdm runs/sdm --tdm runs/tdm --prompt ...

Pictures are written as they are made, and the same command makes what is missing. Every PNG holds
the settings that made it.
"""

import dataclasses
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from fd_jax import assets, distributed
from fd_jax.cli import run
from fd_jax.config import Range
from fd_jax.data.photographs import photographs_in, split_names
from fd_jax.errors import InputError
from fd_jax.files import check_folder
from fd_jax.inference.batch import sample_file, sample_prompt
from fd_jax.inference.inputs import MAX_PHOTOGRAPHS, MAX_SEED
from fd_jax.inference.model_options import ModelOptions
from fd_jax.inference.pictures import CandidateConfig, ImageConfig, OutputConfig, Picture
from fd_jax.inference.validation import unused_options
from fd_jax.inference.writer import PictureWriter, warn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments(ModelOptions):
    """Arguments of the command."""

    prompt: str | None = None
    """Prompt with <|image|> after each person's word. With the models of the package and neither
    --prompt nor --prompt-file: twelve examples."""
    negative_prompt: str = ""
    """Prompt to guide away from."""
    references: Annotated[
        tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(aliases=["--reference"])
    ] = ()
    """Photograph of one person, once per person in the order of the prompt; or several of one
    person with commas between; or a folder of photographs of one person each, in the order of their
    names."""
    prompt_file: Path | None = None
    """File of prompts in place of --prompt, one JSON object a line: prompt, references, and
    optionally seed, output, negative_prompt."""
    num_images: Annotated[int, Range(1)] = 1
    """Number of pictures of the prompt."""
    first_image: Annotated[int, Range(0)] = 0
    """Number of the first picture: picture 7 of a seed is the same alone as among others."""
    seed: Annotated[int, Range(0, MAX_SEED)] | Literal["random"] = 0
    """Seed of the noise. Each PNG holds its seed, a random one too."""
    images: Annotated[ImageConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=ImageConfig
    )
    choice: Annotated[CandidateConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=CandidateConfig
    )
    files: Annotated[OutputConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=OutputConfig
    )
    processes: Annotated[distributed.Processes, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=distributed.Processes
    )

    def __post_init__(self):
        super().__post_init__()
        if self.prompt is not None and self.prompt_file is not None:
            raise InputError("expected either --prompt or --prompt-file, not both")
        if self.prompt is None and self.file is None:
            raise InputError("expected either --prompt or --prompt-file")
        if self.prompt is None:
            for name, default in (
                ("references", ()),
                ("num_images", 1),
                ("first_image", 0),
                ("negative_prompt", ""),
            ):
                if getattr(self, name) != default:
                    option = "--" + name.replace("_", "-")
                    raise InputError(f"{option} goes with --prompt, not with --prompt-file")

    @property
    def file(self) -> Path | None:
        """The prompt file: the one given, or the examples of the bundled models."""
        if self.prompt_file is None and self.prompt is None and self.is_bundled:
            return assets.PROMPTS
        return self.prompt_file


def sample(arguments: Arguments) -> int:
    """Samples the pictures and returns the exit status."""
    distributed.join(arguments.processes)
    distributed.enable_compile_cache()
    writer = PictureWriter(arguments.images, arguments.files, arguments.models(), arguments.choice)
    check_folder(arguments.files.output)
    seed = _seed(arguments.seed)

    if jax.process_index() == 0:
        for message in unused_options(
            arguments.images.sampler,
            negative_prompt=bool(arguments.negative_prompt),
            references=bool(arguments.references),
        ):
            warn(message)
    if arguments.file is not None:
        return sample_file(arguments.load, arguments.file, seed, writer)
    references = people_of(arguments.references)
    pictures = [
        Picture(
            output=f"{number:04d}.png",
            prompt=arguments.prompt or "",
            negative_prompt=arguments.negative_prompt,
            references=references,
            seed=seed,
            number=number,
        )
        for number in range(arguments.first_image, arguments.first_image + arguments.num_images)
    ]
    return sample_prompt(arguments.load, pictures, writer, any_seed=arguments.seed == "random")


def people_of(paths: Sequence[Path]) -> tuple[tuple[Path, ...], ...]:
    """Returns the photographs of each person that `--reference` names. Raises InputError."""
    people: list[tuple[Path, ...]] = []
    for path in paths:
        names = split_names(str(path))
        if len(names) == 1:
            people += [(file,) for file in photographs_in(path)]
            continue
        if len(names) > MAX_PHOTOGRAPHS:
            raise InputError(
                f"--reference names {len(names)} photographs of a person, expected "
                f"{MAX_PHOTOGRAPHS} at most"
            )
        people.append(tuple(names))
    return tuple(people)


def _seed(seed: int | str) -> int:
    """Returns the seed, a random one the same on all processes."""
    if seed != "random":
        return int(seed)
    drawn = np.uint32(secrets.randbelow(MAX_SEED + 1))
    if jax.process_count() > 1:
        drawn = multihost_utils.broadcast_one_to_all(drawn)
    return int(drawn)


def main() -> None:
    """Runs the command line."""
    run(sample, description=__doc__, config=(tyro.conf.OmitArgPrefixes,))
