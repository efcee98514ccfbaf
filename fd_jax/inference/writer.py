"""Writes pictures to PNG files with their settings and traces, as they are sampled."""

import dataclasses
import functools
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from fd_jax.data.prepare.faces import opencv
from fd_jax.errors import InputError
from fd_jax.faces.recognizers import load_recognizer
from fd_jax.files import names_in, path_exists
from fd_jax.images.pixels import to_uint8
from fd_jax.images.png import write_png
from fd_jax.images.trace_sheet import trace_sheet
from fd_jax.inference.candidates import CandidateJudge, Score
from fd_jax.inference.inputs import SamplingInputs, shown_references
from fd_jax.inference.pictures import (
    CandidateConfig,
    ImageConfig,
    OutputConfig,
    Picture,
    readable,
)
from fd_jax.inference.pipeline import FaceDiffuser
from fd_jax.inference.samples import Samples, SamplingTrace
from fd_jax.sampling.stages import STAGE_NAMES

CANDIDATES = "candidates"  # folder of all candidates, in that of the pictures
_TRACE_COLUMNS = 8
_NO_CHOICE = CandidateConfig()


class _Best(NamedTuple):
    """The best candidate of a picture so far."""

    score: Score
    picture: Picture
    drawn: list[np.ndarray]


class PictureWriter:
    """Writes pictures, with their traces, as they are sampled; of candidates the best.

    Attributes:
        num_made: Pictures written so far.
        num_failed: Pictures and lines that failed so far; each was reported on stderr.

    Args:
        images: Settings of all pictures.
        output: Folder and files.
        models: Paths of the models, for the settings in the PNG files.
        choice: Number of candidates, and how the best is chosen.

    Raises:
        InputError: The face recognizer cannot be used, or OpenCV is missing for candidates.
    """

    def __init__(
        self,
        images: ImageConfig,
        output: OutputConfig,
        models: Mapping[str, str],
        choice: CandidateConfig = _NO_CHOICE,
    ):
        self.images = images
        self.output = output
        self.choice = choice
        self.num_made = 0
        self.num_failed = 0
        self._models = models
        self._recognizer = choice.recognizer and load_recognizer(choice.recognizer)
        self._judge: CandidateJudge | None = None
        self._best: dict[str, _Best] = {}  # by file name
        if choice.candidates > 1:
            opencv()

    def rows(self, picture: Picture) -> list[Picture]:
        """Returns what is sampled for a picture: itself, or its candidates.

        The candidates of picture n of a seed are its pictures n * candidates and following.
        """
        count = self._num_candidates(picture)
        if count == 1:
            return [picture]
        return [
            picture._replace(number=picture.number * count + i, candidate=i) for i in range(count)
        ]

    def _num_candidates(self, picture: Picture) -> int:
        return self.choice.candidates if picture.references else 1

    def files(self, picture: Picture) -> list[Path]:
        """Returns the files of a picture: itself, and its trace if wanted."""
        names = [picture.output, picture.trace] if self.output.trace else [picture.output]
        return [self.output.output / name for name in names]

    def missing(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Returns the pictures that lack a file; all of them if files are overwritten."""
        if self.output.overwrite:
            return list(pictures)
        held = functools.cache(names_in)
        return [
            picture
            for picture in pictures
            if not all(path.name in held(path.parent) for path in self._all_files(picture))
        ]

    def _all_files(self, picture: Picture) -> list[Path]:
        rows = self.rows(picture) if self.choice.keep_candidates else []
        return self.files(picture) + [self._candidate_file(row) for row in rows]

    def _candidate_file(self, row: Picture) -> Path:
        name = Path(row.output)
        file = name.name if row.candidate is None else f"{name.stem}_{row.candidate}{name.suffix}"
        return self.output.output / CANDIDATES / name.parent / file

    def known_settings(self, picture: Picture) -> dict[str, Any]:
        """Returns the settings of a picture's file that are known before models are read."""
        sizes = ("height", "width", "subject_resolution", "crop_references")
        given = {name: getattr(self.images, name) for name in sizes}
        own = picture.settings()
        if (count := self._num_candidates(picture)) > 1:
            del own["image_number"]  # of the best candidate
            own["candidates"] = count
        return {
            **own,
            **dataclasses.asdict(self.images.sampler),
            **{name: value for name, value in given.items() if value is not None},
            **self._models,
        }

    def settings(self, pipe: FaceDiffuser, **own: Any) -> dict[str, Any]:
        """Returns the settings that a PNG file holds."""
        if not self.output.metadata:
            return {}
        height, width = pipe.latent_size(self.images.height, self.images.width)
        scale = pipe.architecture.vae.downscale
        return {
            **own,
            **dataclasses.asdict(self.images.sampler),
            "height": height * scale,
            "width": width * scale,
            "subject_resolution": pipe.subject_size(self.images.subject_resolution),
            "crop_references": self.images.crop_references,
            "dtype": str(pipe.dtype),
            **self._models,
            "software": f"fd_jax, jax {jax.__version__} on {jax.default_backend()}",
        }

    def make_inputs(self, pipe: FaceDiffuser, picture: Picture) -> SamplingInputs:
        """Returns the inputs of a picture, in a batch of one. Prints warnings, with the line.

        Raises:
            InputError: They cannot be used, or the faces of candidates not be compared with them.
        """
        if self._num_candidates(picture) > 1:
            self._judge_of(pipe).check(picture.references)
        return pipe.make_inputs(
            [picture.prompt],
            [picture.references],
            [picture.negative_prompt],
            subject_resolution=self.images.subject_resolution,
            mode=self.images.sampler.mode,
            crop_references=self.images.crop_references,
            warn=functools.partial(warn, line=picture.line),
        )

    def write(
        self,
        pipe: FaceDiffuser,
        samples: Samples,
        pictures: Sequence[Picture],
        inputs: Sequence[SamplingInputs],
    ) -> None:
        """Writes the pictures of a batch. One that cannot be written is reported.

        All processes of the mesh call it, as decoding needs all of them; the first one writes.

        Args:
            pipe: Pipeline that made the samples.
            samples: The images.
            pictures: Their files.
            inputs: Their inputs, in batches of one.
        """
        for i, picture in enumerate(pictures):
            try:
                if picture.candidate is not None:
                    self._consider(pipe, samples, i, picture, inputs[i])
                    continue
                self._write_files(pipe, picture, self._draw(pipe, samples, i, picture, inputs[i]))
            except Exception as error:
                self.fail(picture, error)

    def _draw(
        self,
        pipe: FaceDiffuser,
        samples: Samples,
        i: int,
        picture: Picture,
        inputs: SamplingInputs,
    ) -> list[np.ndarray]:
        """Returns a picture, and its trace if wanted."""
        drawn = [np.asarray(samples[i])]
        if samples.trace is not None:
            references = shown_references(inputs, 0)
            drawn.append(draw_trace(pipe, samples.trace, i, picture.prompt, references))
        return drawn

    def _consider(
        self,
        pipe: FaceDiffuser,
        samples: Samples,
        i: int,
        picture: Picture,
        inputs: SamplingInputs,
    ) -> None:
        """Keeps a candidate if it is the best so far, and writes the best after the last.

        A candidate that is not finite is none. Raises NonFiniteError if no candidate is.
        """
        best = self._best.get(picture.output)
        is_last = picture.candidate == self.choice.candidates - 1
        if samples.is_finite[i] or (is_last and best is None):
            pixels = np.asarray(samples[i])
            score = self._judge_of(pipe)(pixels, picture.references, inputs)
            if self.choice.keep_candidates:
                self._write_file(pipe, self._candidate_file(picture), pixels, picture, score)
            if best is None or score > best.score:
                best = _Best(score, picture, self._draw(pipe, samples, i, picture, inputs))
                self._best[picture.output] = best
        if is_last and best is not None:
            del self._best[picture.output]
            self._write_files(pipe, best.picture, best.drawn, best.score)

    def _judge_of(self, pipe: FaceDiffuser) -> CandidateJudge:
        if self._judge is None:
            self._judge = CandidateJudge(pipe, self._recognizer or None)
        return self._judge

    def _write_files(
        self,
        pipe: FaceDiffuser,
        picture: Picture,
        drawn: Sequence[np.ndarray],
        score: Score | None = None,
    ) -> None:
        for path, pixels in zip(self.files(picture), drawn, strict=True):
            self._write_file(pipe, path, pixels, picture, score)
        self.num_made += 1

    def _write_file(
        self,
        pipe: FaceDiffuser,
        path: Path,
        pixels: np.ndarray,
        picture: Picture,
        score: Score | None,
    ) -> None:
        """Writes a file, unless it is there already: of a run without --trace or cut short."""
        if pipe.mesh.is_multi_process and jax.process_index() != 0:
            return
        own = picture.settings()
        if score is not None:
            own |= {
                "candidates": self.choice.candidates,
                "faces": score.num_faces,
                "identity": score.identity,
            }
        if self.output.overwrite or not path_exists(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, pixels, self.settings(pipe, **own), overwrite=self.output.overwrite)

    def fail(self, picture: Picture, error: Exception) -> None:
        """Reports and counts a picture that failed, with the place of an unexpected error."""
        reason = str(error)
        if not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {reason}"
            if places := traceback.extract_tb(error.__traceback__):
                reason += f" ({places[-1].filename}, line {places[-1].lineno})"
        self.report(picture.output if picture.line is None else f"line {picture.line}", reason)

    def report(self, where: str, reason: str) -> None:
        """Reports and counts a failure."""
        self.num_failed += 1
        tqdm.write(f"{where}: {reason}", file=sys.stderr)

    def summary(self, begin: float) -> str:
        """Returns a line about what was made."""
        failed = f"; {self.num_failed} failed" if self.num_failed else ""
        seconds = time.perf_counter() - begin
        folder = readable(str(self.output.output))
        return f"made {self.num_made} pictures in {seconds:.1f} s: {folder}{failed}"


def draw_trace(
    pipe: FaceDiffuser,
    trace: SamplingTrace,
    image: int,
    title: str,
    references: Sequence[np.ndarray] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a drawing of some evaluations of one image, with the photographs of its people."""
    length = len(trace.steps.stage)
    shown = np.unique(np.linspace(0, length - 1, _TRACE_COLUMNS).round().astype(int))
    stages = [STAGE_NAMES[stage] for stage in trace.steps.stage[shown]]
    return trace_sheet(
        to_uint8(pipe.decode(trace.x0[shown, image])),
        trace.tdm_saliency[shown, image],
        trace.sdm_saliency[shown, image],
        trace.sdm_weight[shown, image],
        steps=[f"{i} {stage}" for i, stage in zip(shown, stages, strict=True)],
        title=title,
        references=references,
    )


def warn(message: str, line: int | None = None) -> None:
    """Prints a warning, with the line of the prompt file."""
    where = "" if line is None else f"line {line}: "
    tqdm.write(f"warning: {where}{message}", file=sys.stderr)
