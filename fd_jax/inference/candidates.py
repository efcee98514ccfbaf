"""Chooses among several pictures of the same people by the faces in them."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float, UInt8

from fd_jax.data.captions import MAX_SUBJECTS
from fd_jax.data.photographs import load_photograph
from fd_jax.data.reference_crops import crop_face
from fd_jax.faces.matching import lowest, match_best
from fd_jax.faces.recognizers import Recognizer, embed_largest, look, unit
from fd_jax.inference.inputs import SamplingInputs, shown_references
from fd_jax.inference.pipeline import FaceDiffuser

Pixels = UInt8[np.ndarray, "_ _ 3"]
People = Sequence[Sequence[Path]]  # the photographs of each person


class Score(NamedTuple):
    """How well a picture shows its people. The greater score is the better picture."""

    is_count_right: bool  # whether there are as many faces as people
    identity: float  # 0..1, of the person who is shown worst
    num_faces: int


class CandidateJudge:
    """Scores pictures by the number of their faces, then by their likeness to the photographs.

    The likeness is the cosine of embeddings, of faces and people matched so that their sum is the
    largest: of a face recognizer, or else of the SDM's own image encoder, which is all that the
    SDM knows of the people.

    Args:
        pipe: Pipeline that makes the pictures.
        recognizer: Recognizer of faces.
    """

    def __init__(self, pipe: FaceDiffuser, recognizer: Recognizer | None = None):
        self._pipe = pipe
        self._recognizer = recognizer
        self._recognized = functools.cache(self._recognize)

    def check(self, people: People) -> None:
        """Raises InputError if the recognizer finds no face in a photograph."""
        if self._recognizer is not None:
            for path in (path for one in people for path in one):
                self._recognized(path)

    def __call__(self, picture: Pixels, people: People, inputs: SamplingInputs) -> Score:
        """Scores a picture.

        All processes of the pipeline's mesh call it.

        Args:
            picture: RGB.
            people: The photographs of each person.
            inputs: The inputs of the picture, in a batch of one.

        Raises:
            InputError: The recognizer finds no face in a photograph.
        """
        image, faces = look(picture)
        shown = faces[:MAX_SUBJECTS]
        if self._recognizer is None:
            views = [crop_face(image, face, shown).pixels for face in shown] or [image]
            found = self._pipe.embed(_filled(views))[: len(shown)]
            photographs = self._pipe.embed(_filled(shown_references(inputs, 0)))
        else:
            found = np.array([self._recognizer(image, face) for face in shown])
            photographs = np.stack([self._recognized(path) for one in people for path in one])
        identity = 0.0
        if shown:
            ends = np.cumsum([len(one) for one in people])
            parts = np.split(photographs[: ends[-1]], ends[:-1])
            references = unit(np.stack([unit(part).mean(axis=0) for part in parts]))
            cosines = unit(found) @ references.T
            identity = lowest(cosines, match_best(cosines))
        score = np.array([len(faces) == len(people), identity, len(faces)], np.float32)
        if self._pipe.mesh.is_multi_process:  # which candidate is the best has to be the same
            score = multihost_utils.broadcast_one_to_all(score)
        return Score(bool(score[0]), round(float(score[1]), 4), int(score[2]))

    def _recognize(self, path: Path) -> Float[np.ndarray, " d"]:
        assert self._recognizer is not None
        return embed_largest(load_photograph(path), self._recognizer, str(path))


def _filled(photographs: Sequence[Pixels]) -> list[Pixels]:
    """Repeats the last photograph up to a multiple of 4, so that few numbers are compiled."""
    missing = -len(photographs) % MAX_SUBJECTS
    return [*photographs, *[photographs[-1]] * missing]
