"""Judges of the bundled models: a classifier of painted scenes, and the SDM's own image encoder."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from fd_jax.demo.scene_classifier import SceneClassifier
from fd_jax.evaluation.cases import Case, Person, Pixels
from fd_jax.evaluation.judges import Measure, Scores
from fd_jax.faces.recognizers import unit
from fd_jax.inference.pipeline import FaceDiffuser

# Share of width and height that shows one of two people. In training images their heads lie within
# 0.03 to 0.49 of the width (or its mirror image) and the neighbour's shoulders reach 0.42; their
# hair begins 0.26 to 0.36 from the top, which a square of this width at the bottom would cut off.
WIDTH, HEIGHT = 0.55, 0.75


class SceneJudge:
    """Whether a picture shows the scene of its prompt."""

    name = "scene"

    def __init__(self, classifier: SceneClassifier):
        self._classifier = classifier
        self.description = (
            f"a classifier of painted scenes, right on {classifier.accuracy:.1%} of held-out ones "
            "with other seeds and people"
        )
        self.measures = {
            "prompt": Measure(
                "prompt",
                "share of the pictures that the classifier assigns to their scene",
                "prompt",
            ),
            "probability": Measure(
                "probability", "mean probability that the classifier gives to the right scene"
            ),
        }

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[Case]) -> Scores:
        probabilities = self._classifier(pictures)
        scenes = np.array([case.prompt_number for case in cases])
        return {
            "prompt": (probabilities.argmax(axis=1) == scenes).astype(np.float64),
            "probability": probabilities[np.arange(len(cases)), scenes].astype(np.float64),
        }

    def chance(self, cases: Sequence[Case]) -> dict[str, float]:
        return {"prompt": 1 / self._classifier.num_scenes}


class EncoderJudge:
    """Similarity of people and photographs in the SDM's own image encoder."""

    name = "image encoder"
    description = "the SDM's own image encoder, which is all that the SDM knows of the people"

    def __init__(self, pipe: FaceDiffuser, people: Sequence[Person]):
        self._identity = ClipIdentity(pipe, [person.photograph for person in people])
        self._confusable = confusable([person.noun for person in people])
        self.measures = {
            "identity": Measure(
                "identity, image encoder",
                "cosine between the embeddings of person and photograph, after the mean embedding "
                "of all photographs is subtracted; averaged over two people",
                "identity",
            ),
            "identified": Measure(
                "identified",
                "share of the people whose own photograph is the most similar of all photographs "
                "with the same noun",
                "identity",
            ),
        }

    def __call__(self, pictures: Sequence[Pixels], cases: Sequence[Case]) -> Scores:
        views = [
            person_view(picture, place, len(case.people))
            for picture, case in zip(pictures, cases, strict=True)
            for place in range(len(case.people))
        ]
        ends = np.cumsum([len(case.people) for case in cases])[:-1]
        identity, identified = [], []
        for cosines, case in zip(np.split(self._identity(views), ends), cases, strict=True):
            people = np.array(case.people)
            nearest = np.where(self._confusable[people], cosines, -np.inf).argmax(axis=1)
            identity.append(cosines[np.arange(len(people)), people].mean())
            identified.append(np.mean(nearest == people))
        return {
            "identity": np.array(identity, np.float64),
            "identified": np.array(identified, np.float64),
        }

    def chance(self, cases: Sequence[Case]) -> dict[str, float]:
        shares = [(1 / self._confusable[list(case.people)].sum(axis=1)).mean() for case in cases]
        return {"identified": float(np.mean(shares))}


def person_view(picture: Pixels, place: int, count: int) -> Pixels:
    """Crops the square that shows one person of an image.

    Args:
        picture: Square image.
        place: Index of the person, from the left.
        count: Number of people, one or two. One person's crop is the whole image. Each of two
            people has a crop at the bottom, as high as people are, padded to a square with its
            outermost columns, so that a head is as large in it as in a photograph.
    """
    if count == 1:
        return picture
    side = len(picture)
    width, height = round(WIDTH * side), round(HEIGHT * side)
    left = 0 if place == 0 else side - width
    part = picture[side - height :, left : left + width]
    before = (height - width) // 2
    return np.pad(part, ((0, 0), (before, height - width - before), (0, 0)), "edge")


class ClipIdentity:
    """Compares people by the SDM's own image encoder, which is all that the SDM knows of them.

    Args:
        pipe: Pipeline of the SDM.
        photographs: The references.
    """

    def __init__(self, pipe: FaceDiffuser, photographs: Sequence[Pixels]):
        self._pipe = pipe
        embeds = pipe.embed(photographs)
        # The mean embedding says that there is a person, not who.
        self._mean = embeds.mean(axis=0)
        self._references = unit(embeds - self._mean)

    def __call__(self, views: Sequence[Pixels]) -> Float[np.ndarray, "n m"]:
        """Computes the cosine between each view and each reference, less the references' mean."""
        return unit(self._pipe.embed(views) - self._mean) @ self._references.T


def confusable(nouns: Sequence[str]) -> Bool[np.ndarray, "m m"]:
    """Returns which people can be confused: those with the same noun, which the prompt reveals.

    A person whose noun is unique can be confused with everybody.
    """
    same = np.array(nouns)[:, None] == np.array(nouns)
    return same | (same.sum(axis=1, keepdims=True) == 1)
