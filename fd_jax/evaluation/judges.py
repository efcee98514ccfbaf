"""Judges of identity: networks that compare the person in an image with reference photographs."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fd_jax.errors import InputError
from fd_jax.inference.pipeline import FaceDiffuser

Pixels = UInt8[np.ndarray, "_ _ 3"]

# Share of width and height that shows one of two people. In training images their heads lie within
# 0.03 to 0.49 of the width (or its mirror image) and the neighbour's shoulders reach 0.42; their
# hair begins 0.26 to 0.36 from the top, which a square of this width at the bottom would cut off.
WIDTH, HEIGHT = 0.55, 0.75

FACE_MODELS = {"detector": "face_detection_yunet_2023mar.onnx"}
FACE_MODELS |= {"recognizer": "face_recognition_sface_2021dec.onnx"}
_JUDGE_SIDE = 320  # longer side of images for YuNet, which then finds faces of all sizes


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
        self._references = _unit(embeds - self._mean)

    def __call__(self, views: Sequence[Pixels]) -> Float[np.ndarray, "n m"]:
        """Computes the cosine between each view and each reference, less the references' mean."""
        return _unit(self._pipe.embed(views) - self._mean) @ self._references.T


def check_face_models(folder: Path) -> None:
    """Raises InputError if OpenCV or one of `FACE_MODELS` is missing."""
    missing = [name for name in FACE_MODELS.values() if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"judges folder {folder} holds no {' and no '.join(missing)}, expected the models of "
            "YuNet and SFace from OpenCV's model zoo"
        )
    if importlib.util.find_spec("cv2") is None:
        raise InputError(
            "judges need OpenCV: pip install opencv-python-headless, or leave --judges out"
        )


class FaceRecognizer:
    """Compares faces by OpenCV's YuNet and SFace, which had no part in training the models.

    Args:
        folder: Folder of `FACE_MODELS`.
        photographs: The references.
        names: Names of the references, for errors.

    Raises:
        InputError: OpenCV or a model is missing, or there is no face in a photograph.
    """

    def __init__(self, folder: Path, photographs: Sequence[Pixels], names: Sequence[str]):
        check_face_models(folder)
        import cv2  # optional

        set_log_level = getattr(cv2, "setLogLevel", None)  # which OpenCV 5 lacks
        if set_log_level is not None:
            set_log_level(2)  # errors
        detector, recognizer = (str(folder / name) for name in FACE_MODELS.values())
        self._detector = cv2.FaceDetectorYN.create(detector, "", (_JUDGE_SIDE, _JUDGE_SIDE))
        self._recognizer = cv2.FaceRecognizerSF.create(recognizer, "")
        references = []
        for name, photograph in zip(names, photographs, strict=True):
            image = _enlarged(photograph)
            if not (faces := self._faces(image)):
                raise InputError(f"YuNet finds no face in the photograph of {name}")
            references.append(self._feature(image, faces[0]))
        self._references = np.stack(references)

    def __call__(self, picture: Pixels, count: int) -> Float[np.ndarray, "count m"]:
        """Computes the cosine between each person's face and each reference.

        The clearest face of each half of the image is that of one of two people. NaN stands for
        no face.
        """
        image = _enlarged(picture)
        found = np.full((count, len(self._references)), np.nan, np.float32)
        for face in reversed(self._faces(image)):
            middle = (face[0] + face[2] / 2) / image.shape[1]
            place = int(middle * count) if 0 <= middle < 1 else None
            if place is not None:
                found[place] = self._references @ self._feature(image, face)
        return found

    def between_references(self) -> Float[np.ndarray, "m m"]:
        """Computes the cosines between all references."""
        return self._references @ self._references.T

    def _faces(self, image: np.ndarray) -> list[np.ndarray]:
        """Detects faces: boxes, landmarks and scores, the clearest first."""
        self._detector.setInputSize(image.shape[1::-1])
        faces = self._detector.detect(image)[1]
        return [] if faces is None else sorted(faces, key=lambda face: -face[-1])

    def _feature(self, image: np.ndarray, face: np.ndarray) -> Float[np.ndarray, " d"]:
        aligned: Any = self._recognizer.alignCrop(image, face)
        return _unit(self._recognizer.feature(aligned))[0]


def _enlarged(pixels: Pixels) -> np.ndarray:
    """Resizes an image and converts it to BGR, which SFace expects."""
    image = Image.fromarray(pixels)
    scale = _JUDGE_SIDE / max(image.size)
    size = [max(round(length * scale), 1) for length in image.size]
    return np.ascontiguousarray(np.asarray(image.resize(size, Image.Resampling.LANCZOS))[..., ::-1])


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
