"""Scores images: a number for each image and measure of scene and identity."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fd_jax.demo.grid import EvalCase, Pixels, Subject
from fd_jax.demo.scene_classifier import SceneClassifier
from fd_jax.evaluation.judges import ClipIdentity, FaceRecognizer, person_view

Scores = dict[str, Float[np.ndarray, " n"]]  # by measure


class Measure(NamedTuple):
    """Title and explanation of a measure in the report."""

    title: str
    explanation: str


MEASURES = {
    "identity": Measure(
        "identity, image encoder",
        "cosine between the embeddings of person and photograph by the SDM's own image encoder, "
        "after the mean embedding of all photographs is subtracted; averaged over two people",
    ),
    "identified": Measure(
        "identified",
        "share of the people whose own photograph is the most similar of all photographs with the "
        "same noun",
    ),
    "sface": Measure(
        "identity, SFace",
        "cosine between face and photograph as SFace embeds them, at least 0; 0 where YuNet finds "
        "no face",
    ),
    "faces": Measure("faces found", "share of the people whose face YuNet finds"),
    "prompt": Measure("prompt", "share of the pictures that the classifier assigns to their scene"),
    "probability": Measure(
        "probability", "mean probability that the classifier gives to the right scene"
    ),
}


class Scorer:
    """Scores the images of cases.

    Args:
        subjects: People of all cases.
        classifier: Classifier of the scenes.
        clip_identity: Judge of identity whose references are the subjects' photographs.
        face_recognizer: Another judge with the same references, or None.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        classifier: SceneClassifier,
        clip_identity: ClipIdentity,
        face_recognizer: FaceRecognizer | None,
    ):
        self._classifier = classifier
        self._clip_identity = clip_identity
        self._face_recognizer = face_recognizer
        self._confusable = confusable([subject.noun for subject in subjects])

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[EvalCase]) -> Scores:
        """Scores images, one for each case."""
        probabilities = self._classifier(pictures)
        scenes = np.array([case.scene for case in cases])
        scores: dict[str, Any] = {"identity": [], "identified": []}
        views = [
            person_view(picture, place, len(case.people))
            for picture, case in zip(pictures, cases, strict=True)
            for place in range(len(case.people))
        ]
        ends = np.cumsum([len(case.people) for case in cases])[:-1]
        for cosines, case in zip(np.split(self._clip_identity(views), ends), cases, strict=True):
            people = np.array(case.people)
            nearest = np.where(self._confusable[people], cosines, -np.inf).argmax(axis=1)
            scores["identity"].append(_own(cosines, people).mean())
            scores["identified"].append(np.mean(nearest == people))
        if self._face_recognizer is not None:
            scores |= {"sface": [], "faces": []}
            for picture, case in zip(pictures, cases, strict=True):
                own = _own(self._face_recognizer(picture, len(case.people)), np.array(case.people))
                scores["sface"].append(np.nan_to_num(own).clip(min=0).mean())
                scores["faces"].append(np.isfinite(own).mean())
        scores["prompt"] = probabilities.argmax(axis=1) == scenes
        scores["probability"] = probabilities[np.arange(len(cases)), scenes]
        return {name: np.asarray(column, np.float64) for name, column in scores.items()}

    def chance(self, cases: Sequence[EvalCase]) -> dict[str, float]:
        """Returns the expected measures without any knowledge of scene or person.

        SFace's is the mean over photographs of different people.
        """
        shares = [(1 / self._confusable[list(case.people)].sum(axis=1)).mean() for case in cases]
        chance = {
            "identified": float(np.mean(shares)),
            "prompt": 1 / self._classifier.num_scenes,
        }
        if self._face_recognizer is not None:
            between = self._face_recognizer.between_references()
            others = ~np.eye(len(between), dtype=bool)
            chance["sface"] = float(between[others].clip(min=0).mean())
        return chance


def confusable(nouns: Sequence[str]) -> Bool[np.ndarray, "m m"]:
    """Returns which people can be confused: those with the same noun, which the prompt reveals.

    A person whose noun is unique can be confused with everybody.
    """
    same = np.array(nouns)[:, None] == np.array(nouns)
    return same | (same.sum(axis=1, keepdims=True) == 1)


def _own(cosines: Float[np.ndarray, "count m"], people: np.ndarray) -> Float[np.ndarray, " count"]:
    return cosines[np.arange(len(people)), people]
