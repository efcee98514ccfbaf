"""Writes and reads PNG files that hold the settings of their picture."""

import contextlib
import io
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from fd_jax.errors import OutputError
from fd_jax.files import atomic_file, to_path
from fd_jax.images.opening import SupportsRead, open_image

# Errors that Pillow raises on damaged PNG files.
_DAMAGE = (OSError, SyntaxError, ValueError, LookupError, EOFError, RuntimeError, struct.error)
_DAMAGE += (Image.DecompressionBombError,)


def write_png(
    path: str | os.PathLike,
    image: UInt8[np.ndarray, "h w 3"],
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Writes a picture and its settings atomically.

    Args:
        path: A file in a folder that exists.
        image: RGB image.
        settings: One PNG text chunk each, named by printable ASCII such as `prompt` or `seed`.
            Strings are stored as they are, anything else as JSON.
        overwrite: Whether to replace an existing file. If not, a file that another process writes
            at the same time is not replaced either.

    Raises:
        OutputError: The file exists already or cannot be written, or a setting cannot be stored.
    """
    path = to_path(path)
    content = encode_png(image, settings, name=str(path))
    with (
        _errors_named(path),
        atomic_file(path, overwrite=overwrite) as temporary,
        temporary.open("wb") as file,
    ):
        file.write(content)


def encode_png(
    image: UInt8[np.ndarray, "h w 3"], settings: Mapping[str, Any], *, name: str = "picture"
) -> bytes:
    """Returns the content of a PNG file with these settings.

    Raises:
        OutputError: The picture is empty, or a setting cannot be stored; the message begins with
            the name.
    """
    chunks = _text_chunks(name, settings)
    file = io.BytesIO()
    try:
        Image.fromarray(image).save(file, "PNG", pnginfo=chunks)
    except (ValueError, SystemError) as error:
        raise OutputError(f"{name} cannot be written: {error}") from error
    return file.getvalue()


def read_settings(path: str | os.PathLike | SupportsRead) -> dict[str, str]:
    """Returns the settings that `write_png` stored; JSON values are not parsed.

    Args:
        path: Path of the file, or the open binary file.

    Raises:
        OutputError: The file is missing, damaged, or no PNG file.
    """
    try:
        source = to_path(path) if isinstance(path, str | os.PathLike) else path
        with open_image(source, formats=("PNG",)) as image:
            assert isinstance(image, PngImagePlugin.PngImageFile)  # the only format that is read
            return {key: str(value) for key, value in image.text.items()}
    except _DAMAGE as error:
        name = path if isinstance(path, str | os.PathLike) else getattr(path, "name", "picture")
        raise OutputError(f"{name} cannot be read, expected a PNG file: {error}") from error


def setting_text(value: Any) -> str:
    """Returns a setting as its text chunk holds it: strings as they are, the rest as JSON."""
    if isinstance(value, str):
        return value
    # File names may hold bytes that are no text: JSON's escapes keep them.
    return json.dumps(value, ensure_ascii=False).encode(errors="backslashreplace").decode()


def _text_chunks(name: str, settings: Mapping[str, Any]) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    for key, value in settings.items():
        if not re.fullmatch("[!-~]([ -~]{0,77}[!-~])?", key):  # what PNG allows, without Latin-1
            raise OutputError(
                f"{name}: a setting is named {key!r}, expected 1 to 79 printable ASCII characters"
            )
        try:
            chunks.add_text(key, setting_text(value))
        except (TypeError, ValueError) as error:
            raise OutputError(
                f"{name}: setting {key} is {value!r:.80}, expected text or a JSON value: {error}"
            ) from error
    return chunks


@contextlib.contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise OutputError(f"{path} exists already; pass --overwrite to replace it") from error
    except (OSError, ValueError, SystemError) as error:
        problem = getattr(error, "strerror", None) or error
        if not path.parent.is_dir():
            problem = f"expected the folder {path.parent} to exist"
        raise OutputError(f"{path} cannot be written: {problem}") from error
