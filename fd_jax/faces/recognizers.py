"""Recognizers: networks that embed faces, so that the same person's are similar."""

import importlib.util
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fd_jax.data.prepare.faces import Face, find_faces, opencv
from fd_jax.errors import InputError
from fd_jax.files import local_path

SFACE = "face_recognition_sface_2021dec.onnx"

_ENLARGED = 320  # longer side that smaller images are enlarged to
# Where ArcFace and its kin have the landmarks of a face, in an image of 112 x 112.
_TEMPLATE_SIDE = 112
_TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ],
    np.float32,
)

Pixels = UInt8[np.ndarray, "_ _ 3"]
Embedding = Float[np.ndarray, " d"]


@runtime_checkable
class Recognizer(Protocol):
    """Embeds faces.

    Attributes:
        name: Name in reports.
        description: What it is, in one line.
    """

    name: str
    description: str

    def __call__(self, image: Pixels, face: Face) -> Embedding:
        """Returns the embedding of a face in an RGB image, of length 1."""
        ...


def load_recognizer(path: Path) -> Recognizer:
    """Loads a recognizer.

    Args:
        path: OpenCV's SFace, by its name; a folder that holds it; or another ONNX file, see
            `OnnxRecognizer`.

    Raises:
        InputError: The file is missing or no recognizer, or a package is missing.
    """
    path = local_path(path)
    if path.is_dir():
        path = path / SFACE
    if not path.is_file():
        raise InputError(
            f"face recognizer {path} does not exist, expected {SFACE} of OpenCV's model zoo, a "
            "folder that holds it, or another ONNX file"
        )
    return SFace(path) if path.name == SFACE else OnnxRecognizer(path)


class SFace:
    """SFace (Zhong et al., 2021) in OpenCV, which aligns the faces too."""

    def __init__(self, path: Path):
        cv2 = opencv()
        self.name = "SFace"
        self.description = f"SFace, {path.name}, in OpenCV {cv2.__version__}"
        try:
            self._network = cv2.FaceRecognizerSF.create(str(path), "")
        except cv2.error as error:
            raise InputError(f"face recognizer {path} is no ONNX file that OpenCV reads") from error

    def __call__(self, image: Pixels, face: Face) -> Embedding:
        row = np.array([[*face.box, *face.landmarks, face.score]], np.float32)
        aligned = self._network.alignCrop(np.ascontiguousarray(image[..., ::-1]), row)
        return unit(self._network.feature(aligned)[0])


class OnnxRecognizer:
    """An ONNX file of ArcFace's kind, run by onnxruntime.

    It takes aligned faces as float32 [1, 3, side, side], RGB in -1..1, and returns [1, d].
    """

    def __init__(self, path: Path):
        if importlib.util.find_spec("onnxruntime") is None:
            raise InputError(f"face recognizer {path} needs the package onnxruntime")
        import onnxruntime  # pyright: ignore[reportMissingImports]  # optional

        self.name = path.stem
        self.description = f"{path.name} in onnxruntime {onnxruntime.__version__}"
        try:
            providers = onnxruntime.get_available_providers()
            self._network: Any = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:  # its errors have no common type
            raise InputError(f"face recognizer {path} is no readable ONNX file: {error}") from error
        inputs = self._network.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else None
        if shape is None or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
            raise InputError(
                f"face recognizer {path} takes {[entry.shape for entry in inputs]}, expected one "
                "input [1, 3, side, side]"
            )
        self._side = shape[2] if isinstance(shape[2], int) else _TEMPLATE_SIDE
        self._input = inputs[0].name

    def __call__(self, image: Pixels, face: Face) -> Embedding:
        aligned = align(image, face, self._side).astype(np.float32) / 127.5 - 1
        [found, *_] = self._network.run(None, {self._input: aligned.transpose(2, 0, 1)[None]})
        return unit(np.asarray(found, np.float32).ravel())


def align(image: Pixels, face: Face, side: int) -> Pixels:
    """Turns, scales and cuts a face so that its landmarks are where ArcFace expects them."""
    cv2 = opencv()
    landmarks = np.array(face.landmarks, np.float32).reshape(5, 2)
    template = _TEMPLATE * side / _TEMPLATE_SIDE
    matrix = cv2.estimateAffinePartial2D(landmarks, template, method=cv2.LMEDS)[0]
    if matrix is None:  # all landmarks in one place
        matrix = np.eye(2, 3, dtype=np.float32)
    return cv2.warpAffine(image, matrix, (side, side))


def look(image: Pixels) -> tuple[Pixels, list[Face]]:
    """Returns an image, enlarged if it is small, and the faces in it, the clearest first."""
    scale = _ENLARGED / max(image.shape[:2])
    if scale > 1:
        size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
        enlarged = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        image = np.asarray(enlarged)
    return image, find_faces(image)


def embed_largest(image: Pixels, recognizer: Recognizer, name: str) -> Embedding:
    """Returns the embedding of the largest face. Raises InputError if there is none."""
    image, faces = look(image)
    if not faces:
        raise InputError(f"there is no face in the photograph of {name}, expected one")
    return recognizer(image, max(faces, key=lambda face: face.height * face.width))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors along the last axis to length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
