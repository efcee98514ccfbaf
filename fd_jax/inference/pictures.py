"""The pictures of a command: their settings, their files, and what tells one from another."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from fd_jax.config import Config, Range
from fd_jax.errors import InputError
from fd_jax.sampling.stages import SamplerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(Config):
    """Settings that all pictures of a command share."""

    sampler: Annotated[SamplerConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=SamplerConfig
    )
    height: int | None = None
    """Height of the pictures in pixels; by default that of the models' training."""
    width: int | None = None
    """Width of the pictures in pixels; by default that of the models' training."""
    subject_resolution: Annotated[int | None, tyro.conf.arg(aliases=["--object-resolution"])] = None
    """Side to which photographs are resized first; by default that of the image encoder."""
    crop_references: bool | None = None
    """Cut photographs to head and shoulders and remove their background. By default those that are
    not head and shoulders already, if OpenCV is installed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputConfig(Config):
    """Files that are written, and the batches they are sampled in."""

    output: Path = Path("outputs")
    """Folder for the pictures."""
    batch_size: Annotated[int, Range(1)] = 4
    """Pictures sampled at a time; of one prompt, on each device."""
    trace: bool = False
    """Also draw saliency maps, masks and predictions at some steps: NAME_trace.png beside
    NAME.png."""
    overwrite: bool = False
    """Replace pictures that exist already."""
    metadata: bool = True
    """Store the settings in each PNG, with file names (not paths) of the photographs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CandidateConfig(Config):
    """How many candidates of a picture are made, and how the best is chosen."""

    candidates: Annotated[int, Range(1)] = 1
    """Candidates to make of each picture of people. The best is kept: the right number of faces
    counts first, then their likeness to the photographs. Needs OpenCV."""
    recognizer: Path | None = None
    """Face recognizer that compares candidates with the photographs: the folder or file of OpenCV's
    SFace, or another ONNX file. By default the SDM's image encoder does."""
    keep_candidates: bool = False
    """Also write all candidates, to OUTPUT/candidates."""

    def __post_init__(self):
        super().__post_init__()
        if self.candidates == 1 and (self.recognizer or self.keep_candidates):
            option = "--recognizer" if self.recognizer else "--keep-candidates"
            raise InputError(f"{option} goes with --candidates")


class Picture(NamedTuple):
    """A picture to sample, and its file."""

    output: str  # file name
    prompt: str
    negative_prompt: str
    references: tuple[tuple[Path, ...], ...]  # the photographs of each person
    seed: int
    number: int  # number of the picture among those of its prompt and seed
    line: int | None = None  # line of the prompt file
    candidate: int | None = None  # index among the candidates, where there are several

    @property
    def trace(self) -> str:
        """File name of the trace."""
        return f"{Path(self.output).stem}_trace.png"

    def settings(self) -> dict[str, Any]:
        """Returns what tells the picture from others of the same command."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "references": [_names(person) for person in self.references],
            "seed": self.seed,
            "image_number": self.number,
        }


def _names(person: Sequence[Path]) -> str | list[str]:
    """Returns the file name of a photograph, or a list of several of one person."""
    names = [readable(path.name) for path in person]
    return names[0] if len(names) == 1 else names


def readable(name: str) -> str:
    """Returns a file name as text that can be printed and stored, also if it is not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
