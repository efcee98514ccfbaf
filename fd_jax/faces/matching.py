"""Matches the faces of an image with the people that it was made of."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

Cosines = Float[np.ndarray, "faces people"]


def match_greedily(cosines: Cosines) -> Int[np.ndarray, " people"]:
    """Returns the face of each person, -1 for none: from the most similar pair down."""
    left = cosines.astype(np.float64)
    faces = np.full(cosines.shape[1], -1)
    for _ in range(min(cosines.shape)):
        face, person = np.unravel_index(left.argmax(), left.shape)
        faces[person] = face
        left[face, :] = left[:, person] = -np.inf
    return faces


def match_best(cosines: Cosines) -> Int[np.ndarray, " people"]:
    """Returns the face of each person, -1 for none: the largest sum of cosines (Hungarian)."""
    faces = np.full(cosines.shape[1], -1)
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    faces[columns] = rows
    return faces


def lowest(cosines: Cosines, faces: Int[np.ndarray, " people"]) -> float:
    """Returns the lowest cosine of the matched pairs, at least 0; 0 if a person has no face."""
    if (faces < 0).any():
        return 0.0
    return max(float(cosines[faces, np.arange(len(faces))].min()), 0.0)


def are_confused(cosines: Cosines) -> bool:
    """Whether two of the faces have the same person as the most similar one."""
    nearest = cosines.argmax(axis=1)
    return len(set(nearest.tolist())) < len(nearest)
