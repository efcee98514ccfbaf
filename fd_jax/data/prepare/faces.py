"""Finds faces with YuNet, through OpenCV."""

import functools
import importlib.util
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from fd_jax.assets import JUDGES
from fd_jax.errors import InputError

YUNET = JUDGES / "face_detection_yunet_2023mar.onnx"

_SIDES = 320, 640  # longer sides at which faces are looked for, in pixels
_SMALL = 40  # height of a face, at the first side, below which there may be smaller ones
_OVERLAP = 0.3  # IoU above which two boxes are one face
_SHARPNESS_SIDE = 128  # pixels
_ERRORS = 2  # OpenCV's level of messages


class Face(NamedTuple):
    """A face in an image."""

    box: tuple[int, int, int, int]  # x1, y1, x2, y2 within the image; the last two exclusive
    score: float  # 0..1
    landmarks: tuple[float, ...] = ()  # x, y of right eye, left eye, nose, right and left mouth

    @property
    def height(self) -> int:
        return self.box[3] - self.box[1]

    @property
    def width(self) -> int:
        return self.box[2] - self.box[0]

    @property
    def middle(self) -> float:
        return (self.box[0] + self.box[2]) / 2


@functools.cache
def opencv() -> Any:
    """Returns the module cv2, quiet and on one thread. Raises InputError if it is missing."""
    if importlib.util.find_spec("cv2") is None:
        raise InputError(
            "OpenCV is missing, which finds faces and people: pip install opencv-python-headless"
        )
    import cv2  # optional

    # OpenCV 4 has it at the top, OpenCV 5 in a module.
    set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    set_log_level(_ERRORS)
    cv2.setNumThreads(1)  # photographs are spread over cores, each with one
    return cv2


def find_faces(image: UInt8[np.ndarray, "h w 3"], min_score: float = 0.8) -> list[Face]:
    """Returns the faces of an image, the clearest first.

    The image is looked at at 320 pixels, and once more at up to 640 if its faces are small.

    Args:
        image: RGB.
        min_score: Score below which a face is none.
    """
    faces: list[Face] = []
    for side in (_SIDES[0], min(_SIDES[1], max(image.shape[:2]))):
        scale = side / max(image.shape[:2])
        for face in _detect(image, scale, min_score):
            if all(_iou(face.box, other.box) < _OVERLAP for other in faces):
                faces.append(face)
        if faces and min(face.height for face in faces) * scale >= _SMALL:
            break
    return sorted(faces, key=lambda face: -face.score)


def sharpness(image: UInt8[np.ndarray, "h w 3"], face: Face) -> float:
    """Returns the variance of a face's Laplacian over that of its grey levels.

    Faces are compared at 128 pixels, smaller ones as they are. Portraits are at 0.03 or above; a
    Gaussian blur of 2 pixels leaves 0.02 or less.
    """
    cv2 = opencv()
    x1, y1, x2, y2 = face.box
    grey = cv2.cvtColor(np.ascontiguousarray(image[y1:y2, x1:x2]), cv2.COLOR_RGB2GRAY)
    if (scale := _SHARPNESS_SIDE / max(grey.shape)) < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    grey = grey.astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var() / max(grey.var(), 1))


def _detect(image: UInt8[np.ndarray, "h w 3"], scale: float, min_score: float) -> list[Face]:
    cv2 = opencv()
    height, width = image.shape[:2]
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    detector = _detector()
    detector.setInputSize(size)
    detector.setScoreThreshold(min_score)
    bgr = np.ascontiguousarray(cv2.resize(image, size, interpolation=method)[..., ::-1])
    found = detector.detect(bgr)[1]
    faces = []
    for row in [] if found is None else found:
        corners = np.array([row[0], row[1], row[0] + row[2], row[1] + row[3]]) / scale
        x1, y1, x2, y2 = (round(float(c)) for c in corners.clip(0, [width, height] * 2))
        if x1 < x2 and y1 < y2:
            landmarks = tuple(float(c) / scale for c in row[4:14])
            faces.append(Face((x1, y1, x2, y2), float(row[14]), landmarks))
    return faces


@functools.cache
def _detector() -> Any:
    return opencv().FaceDetectorYN.create(str(YUNET), "", (_SIDES[0], _SIDES[0]))


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return width * height / (sum(areas) - width * height)
