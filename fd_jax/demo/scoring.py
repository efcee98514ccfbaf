"""One number for each picture and measure: does it show the scene, and the people?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from fd_jax.demo.grid import Cell, Pixels, Subject
from fd_jax.demo.scene_classifier import SceneClassifier
from fd_jax.evaluation.identity import Judge, Tower, view

Scores = dict[str, Float[np.ndarray, " n"]]  # by measure


class Measure(NamedTuple):
    """How tables and drawings name a measure."""

    title: str
    explanation: str


MEASURES = {
    "identity": Measure(
        "identity, tower",
        "cosine between the person in the picture and the photograph, as the SDM's own image "
        "encoder embeds them, less the mean of all photographs; of two people the mean",
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
    "prompt": Measure("prompt", "share of the pictures that the classifier takes for their scene"),
    "probability": Measure("probability", "that the classifier gives to the scene, on average"),
}


class Scorer:
    """Scores pictures of cells.

    Args:
        subjects: Everybody.
        classifier: Of the scenes.
        tower: Over the photographs of the subjects.
        judge: The same, if there is one.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        classifier: SceneClassifier,
        tower: Tower,
        judge: Judge | None,
    ):
        self._classifier, self._tower, self._judge = classifier, tower, judge
        self._rivals = rivals([subject.noun for subject in subjects])

    def __call__(self, pictures: Sequence[Pixels], cells: Sequence[Cell]) -> Scores:
        """Returns the scores of pictures, one for each cell."""
        probabilities = self._classifier(pictures)
        scenes = np.array([cell.scene for cell in cells])
        scores: dict[str, list[float]] = {"identity": [], "identified": []}
        views = [
            view(picture, place, len(cell.people))
            for picture, cell in zip(pictures, cells, strict=True)
            for place in range(len(cell.people))
        ]
        ends = np.cumsum([len(cell.people) for cell in cells])[:-1]
        for cosines, cell in zip(np.split(self._tower(views), ends), cells, strict=True):
            people = np.array(cell.people)
            nearest = np.where(self._rivals[people], cosines, -np.inf).argmax(axis=1)
            scores["identity"].append(_own(cosines, people).mean())
            scores["identified"].append(np.mean(nearest == people))
        if self._judge is not None:
            scores |= {"sface": [], "faces": []}
            for picture, cell in zip(pictures, cells, strict=True):
                own = _own(self._judge(picture, len(cell.people)), np.array(cell.people))
                scores["sface"].append(np.nan_to_num(own).clip(min=0).mean())
                scores["faces"].append(np.isfinite(own).mean())
        scores["prompt"] = probabilities.argmax(axis=1) == scenes
        scores["probability"] = probabilities[np.arange(len(cells)), scenes]
        return {name: np.asarray(column, np.float64) for name, column in scores.items()}

    def chance(self, cells: Sequence[Cell]) -> dict[str, float]:
        """Returns what measures come to without any knowledge of scene or person.

        Of SFace it is the mean between photographs of different people.
        """
        shares = [(1 / self._rivals[list(cell.people)].sum(axis=1)).mean() for cell in cells]
        chance = {
            "identified": float(np.mean(shares)),
            "prompt": 1 / self._classifier.num_scenes,
        }
        if self._judge is not None:
            between = self._judge.between_references()
            others = ~np.eye(len(between), dtype=bool)
            chance["sface"] = float(between[others].clip(min=0).mean())
        return chance


def rivals(nouns: Sequence[str]) -> Bool[np.ndarray, "m m"]:
    """Returns who could be taken for whom: people with the same noun, as prompts give that away.

    Everybody, for somebody whose noun nobody shares.
    """
    same = np.array(nouns)[:, None] == np.array(nouns)
    return same | (same.sum(axis=1, keepdims=True) == 1)


def _own(cosines: Float[np.ndarray, "count m"], people: np.ndarray) -> Float[np.ndarray, " count"]:
    return cosines[np.arange(len(people)), people]
