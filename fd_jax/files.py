"""Files and folders on disk: checks, JSON, and writes that are atomic."""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fd_jax.errors import CheckpointError, OutputError


def check_folder(folder: str | os.PathLike) -> None:
    """Makes the folder if need be, and tries to write to it. Raises OutputError."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = error.strerror or error
        raise OutputError(f"cannot write to the output folder {folder}: {problem}") from error


def check_new(paths: Sequence[Path]) -> None:
    """Raises OutputError if a file exists already."""
    if existing := [str(path) for path in paths if os.path.lexists(path)]:
        more = f" and {len(existing) - 3} more" * (len(existing) > 3)
        raise OutputError(
            f"{', '.join(existing[:3])}{more} exist already, expected new names "
            "(replace them with --overwrite)"
        )


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist, expected a config") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, and the folder it is in. Raises CheckpointError."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot write the file: {error}") from error
