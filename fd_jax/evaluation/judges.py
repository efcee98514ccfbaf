"""Judges: what gives each picture its scores."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fd_jax.evaluation.cases import Case, Person, Pixels
from fd_jax.evaluation.clip import Clip
from fd_jax.faces.matching import are_confused, lowest, match_best, match_greedily
from fd_jax.faces.recognizers import Recognizer, embed_largest, look

Scores = dict[str, Float[np.ndarray, " n"]]  # by measure; NaN where it does not apply


class Measure(NamedTuple):
    """A number for each picture."""

    title: str
    explanation: str
    # What it measures: plots and the comparison of modes have those of identity and prompt.
    role: Literal["identity", "prompt", "other"] = "other"


@runtime_checkable
class Judge(Protocol):
    """Scores pictures.

    Attributes:
        name: Name in the report.
        description: What it is, in one line.
        measures: Its measures by key.
    """

    name: str
    description: str
    measures: dict[str, Measure]

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[Case]) -> Scores:
        """Scores pictures, one for each case."""
        ...

    def chance(self, cases: Sequence[Case]) -> dict[str, float]:
        """Returns what a model that knows nothing would reach, by measure, where it is known."""
        ...


class PromptJudge:
    """Cosine of picture and prompt in CLIP."""

    name = "CLIP"

    def __init__(self, clip: Clip):
        self._clip = clip
        self._texts: dict[str, np.ndarray] = {}
        self.description = clip.description
        self.measures = {
            "prompt": Measure(
                "prompt, CLIP",
                "cosine of the picture and its prompt without markers",
                "prompt",
            )
        }

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[Case]) -> Scores:
        new = sorted({case.prompt for case in cases} - self._texts.keys())
        if new:
            self._texts |= dict(zip(new, self._clip.texts(new), strict=True))
        texts = np.stack([self._texts[case.prompt] for case in cases])
        return {"prompt": (self._clip.images(pictures) * texts).sum(axis=1).astype(np.float64)}

    def chance(self, cases: Sequence[Case]) -> dict[str, float]:
        """The cosine of a picture with a prompt of another one is not known beforehand."""
        return {}


class FaceJudge:
    """Counts faces, and compares them with the people's photographs.

    Args:
        people: The people of all cases.
        recognizers: What embeds faces.

    Raises:
        InputError: There is no face in a photograph.
    """

    name = "faces"

    def __init__(self, people: Sequence[Person], recognizers: Sequence[Recognizer]):
        self._recognizers = recognizers
        self._references: list[np.ndarray] = []
        self._others: list[list[np.ndarray]] = []
        for recognizer in recognizers:
            embedded = [embed_largest(p.photograph, recognizer, p.id) for p in people]
            self._references.append(np.stack(embedded))
            others = [
                np.array([embed_largest(other, recognizer, p.id) for other in p.others])
                for p in people
            ]
            self._others.append(others)
        self._has_others = any(person.others for person in people)
        parts = [recognizer.description for recognizer in recognizers]
        self.description = "; ".join(["YuNet, OpenCV's detector of faces", *parts])
        self.measures = {
            "faces": Measure("faces right", "share of the pictures with as many faces as people")
        }
        for recognizer in recognizers:
            self.measures |= _face_measures(recognizer.name, has_others=self._has_others)

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[Case]) -> Scores:
        scores = {key: np.full(len(cases), np.nan) for key in self.measures}
        for i, (picture, case) in enumerate(zip(pictures, cases, strict=True)):
            image, faces = look(picture)
            scores["faces"][i] = len(faces) == len(case.people)
            for number, recognizer in enumerate(self._recognizers):
                embeds = np.array([recognizer(image, face) for face in faces])
                found = self._compare(number, embeds, case.people)
                for key, value in found.items():
                    scores[recognizer.name + key][i] = value
        return scores

    def _compare(self, number: int, faces: np.ndarray, people: Sequence[int]) -> dict[str, float]:
        """Returns the scores of one picture by the end of their key."""
        if not len(faces):
            return {"": 0.0, " best": 0.0}
        cosines = faces @ self._references[number][list(people)].T
        if len(people) == 1:
            cosines = cosines[:1]  # the clearest face
        greedy = match_greedily(cosines)
        scores = {"": lowest(cosines, greedy), " best": lowest(cosines, match_best(cosines))}
        if len(people) > 1 and len(faces) > 1:
            scores[" confused"] = float(are_confused(cosines))
        copied = [
            copy_paste(faces[face], self._references[number][person], others)
            for face, person in zip(greedy, people, strict=True)
            if face >= 0 and len(others := self._others[number][person])
        ]
        if copied:
            scores[" copied"] = float(np.mean(copied))
        return scores

    def chance(self, cases: Sequence[Case]) -> dict[str, float]:
        """Of identity: the mean over photographs of different people."""
        found = {}
        for recognizer, references in zip(self._recognizers, self._references, strict=True):
            if len(references) > 1:
                between = (references @ references.T)[~np.eye(len(references), dtype=bool)]
                found[recognizer.name] = float(between.clip(min=0).mean())
        return found


def copy_paste(
    face: Float[np.ndarray, " d"],
    reference: Float[np.ndarray, " d"],
    others: Float[np.ndarray, "m d"],
) -> float:
    """Measures how much more a face is like the reference than like others of the person.

    As in MultiID-Bench (arXiv:2510.14975): the angle to another photograph less that to the
    reference, over the angle between the two photographs. 1 is a copy of the reference, -1 one of
    the other photograph.

    Args:
        face: Embedding of a generated face, of length 1.
        reference: Embedding of the photograph that the model was given.
        others: Embeddings of further photographs, over which the measure is averaged.
    """
    angle = np.arccos(np.clip(others @ face, -1, 1)) - np.arccos(np.clip(reference @ face, -1, 1))
    between = np.arccos(np.clip(others @ reference, -1, 1))
    return float(np.mean(angle / np.maximum(between, 1e-6)))


def _face_measures(name: str, *, has_others: bool) -> dict[str, Measure]:
    measures = {
        name: Measure(
            f"identity, {name}",
            "cosine of face and photograph, matched from the most similar pair down; of several "
            "people the lowest; at least 0, and 0 if a face is missing",
            "identity",
        ),
        f"{name} best": Measure(
            f"identity, {name}, best match",
            "the same with the matching whose sum is the largest (Hungarian)",
        ),
        f"{name} confused": Measure(
            f"confused, {name}",
            "share of the pictures of several people in which two faces are most similar to the "
            "same person, of those with two faces or more",
        ),
    }
    if has_others:
        measures[f"{name} copied"] = Measure(
            f"copied, {name}",
            "copy-paste: 1 where a face is like the photograph given, -1 where it is like another "
            "photograph of the person, by angles",
        )
    return measures
