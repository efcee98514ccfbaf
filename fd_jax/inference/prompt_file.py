"""Reads prompt files, which hold one JSON object per picture and line."""

import codecs
import functools
import json
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fd_jax.buckets import BucketPath
from fd_jax.data.captions import MAX_SUBJECTS, SUBJECT_MARKER
from fd_jax.errors import InputError
from fd_jax.files import is_regular, to_path
from fd_jax.inference.inputs import MAX_PHOTOGRAPHS, MAX_SEED

_KEYS = ("prompt", "references", "seed", "output", "negative_prompt")
_JSON_TYPES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a decimal number",
    type(None): "null",
}
# First bytes of images, archives and PDF, of which every line would fail.
_BINARY = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"PK\x03\x04", b"\x1f\x8b", b"%PDF")
_MAX_NAME = 255  # bytes, on nearly all file systems


class PromptFileError(InputError):
    """A prompt file, or a line of it, that cannot be used."""


class PromptLine(NamedTuple):
    """A line of a prompt file: one picture to sample."""

    line: int  # number of the line, from 1
    prompt: str
    references: tuple[tuple[Path, ...], ...]  # the photographs of each marker's person
    seed: int | None  # None if the line gives none
    output: str  # file name, unique in the file in any letters' case
    negative_prompt: str

    @property
    def trace(self) -> str:
        """File name of the trace."""
        return f"{Path(self.output).stem}_trace.png"


class BadLine(NamedTuple):
    """A line of a prompt file that cannot be used."""

    line: int
    reason: str


def read_prompt_file(
    path: str | os.PathLike, *, traces: bool = False
) -> tuple[list[PromptLine], list[BadLine]]:
    """Returns the lines of a prompt file, and those that cannot be used with the reason.

    A line is a JSON object such as

        {"prompt": "a man <|image|> in the snow", "references": ["man.jpg"], "seed": 3}

    with the optional keys `seed`, `output` (a name; `.png` is added if need be; `000001.png` for
    line 1 if absent) and `negative_prompt`. Without `references` the prompt has no subject. Their
    paths start at the folder of the prompt file; a list in the place of a path holds several
    photographs of one person. Blank lines and those that start with # are skipped.

    Args:
        path: The prompt file.
        traces: Whether each picture has a trace, which needs a unique name too.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    path = to_path(path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise PromptFileError(f"prompt file {path} cannot be read: {problem}") from error

    _check_encoding(path, content)
    is_file = functools.cache(is_regular)  # a few photographs may serve many prompts
    lines: list[PromptLine] = []
    bad_lines: list[BadLine] = []
    line_of_name: dict[str, int] = {}
    for number, text in enumerate(content.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        text = text.strip()
        if not text or text.startswith(b"#"):
            continue
        try:
            line = _parse_line(number, _decode(text), path.parent, is_file)
            names = {"output": line.output} | ({"trace": line.trace} if traces else {})
            claimed = [_claim(role, name, line_of_name) for role, name in names.items()]
        except InputError as error:
            bad_lines.append(BadLine(number, str(error)))
        else:
            line_of_name |= dict.fromkeys(claimed, number)
            lines.append(line)
    return lines, bad_lines


def _check_encoding(path: Path, content: bytes) -> None:
    """Raises PromptFileError if a file is UTF-16 or UTF-32, as some editors save it, or no text."""
    start = content[:1000]
    if start.startswith(_BINARY):
        raise PromptFileError(
            f"prompt file {path} starts with {start[:8]!r}, expected text with a JSON object a line"
        )
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    # Half of the bytes of English text are zero then.
    if start.startswith(marks) or start.count(0) > 0.3 * len(start):
        raise PromptFileError(
            f"prompt file {path} is UTF-16 or UTF-32, expected UTF-8: save it in that encoding"
        )


def _decode(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text.decode(), object_pairs_hook=_without_repeats)
    except UnicodeDecodeError as error:
        raise PromptFileError(f"not valid UTF-8 at byte {error.start + 1} of the object") from error
    except json.JSONDecodeError as error:
        raise PromptFileError(f"not valid JSON: {error.msg} at character {error.colno}") from error
    except RecursionError as error:
        raise PromptFileError("lists or objects nested too deep, expected one object") from error
    except PromptFileError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise PromptFileError(f"cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise PromptFileError(
            f"{_json_type(content)}, expected an object with the keys {', '.join(_KEYS)}"
        )
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = {}
    for key, value in pairs:
        if key in content:
            raise PromptFileError(f"key {key!r:.80} appears more than once")
        content[key] = value
    return content


def _parse_line(
    number: int, content: dict[str, Any], folder: Path, is_file: Callable[[Path], bool]
) -> PromptLine:
    for key in content:
        if key not in _KEYS:
            raise PromptFileError(f"unknown key {key!r:.80}, known are {', '.join(_KEYS)}")
    if "prompt" not in content:
        raise PromptFileError("there is no prompt")
    prompt = _text(content, "prompt")
    negative_prompt = _text(content, "negative_prompt", default="")
    if SUBJECT_MARKER in negative_prompt:
        raise PromptFileError(f"negative_prompt has a marker {SUBJECT_MARKER}, expected none")

    names = content.get("references", [])
    if not isinstance(names, list):
        raise PromptFileError(f"references is {_json_type(names)}, expected a list of strings")
    people = [name if isinstance(name, list) else [name] for name in names]
    for person in people:
        if not person or not all(isinstance(name, str) for name in person):
            found = _json_type(person) if person else "an empty list"
            raise PromptFileError(
                f"references has {found}, expected a string for each person, or a list of strings"
            )
    markers = prompt.count(SUBJECT_MARKER)
    if markers != len(names):
        raise PromptFileError(
            f"{markers} markers {SUBJECT_MARKER} in the prompt and {len(names)} references, "
            "expected as many of each"
        )
    if markers > MAX_SUBJECTS:
        raise PromptFileError(f"{markers} subjects, expected {MAX_SUBJECTS} at most")
    for person in people:
        if len(person) > MAX_PHOTOGRAPHS:
            raise PromptFileError(
                f"{len(person)} photographs of a person, expected {MAX_PHOTOGRAPHS} at most"
            )
    references = tuple(tuple(_beside(folder, name) for name in person) for person in people)
    for path in (path for person in references for path in person):
        if not is_file(path):
            raise PromptFileError(f"reference {str(path)!r} does not exist or is no file")

    seed = content.get("seed")
    if seed is not None and (type(seed) is not int or not 0 <= seed <= MAX_SEED):
        got = seed if type(seed) is int else _json_type(seed)
        raise PromptFileError(f"seed is {got}, expected a whole number from 0 to {MAX_SEED}")
    output = _file_name(_text(content, "output", default=f"{number:06d}"))
    return PromptLine(number, prompt, references, seed, output, negative_prompt)


def _beside(folder: Path, name: str) -> Path:
    """Returns the path of a name that starts at a folder, unless it is in a bucket or absolute."""
    path = to_path(name)
    return path if isinstance(path, BucketPath) else folder / name


def _text(content: dict[str, Any], key: str, default: str = "") -> str:
    text = content.get(key, default)
    if not isinstance(text, str):
        raise PromptFileError(f"{key} is {_json_type(text)}, expected a string")
    if surrogate := re.search("[\ud800-\udfff]", text):  # JSON can escape what is no character
        raise PromptFileError(f"{key} is not valid text: {surrogate[0]!r}")
    return text


def _file_name(name: str) -> str:
    if not name or name.lower() == ".png":
        raise PromptFileError(f"output is {name!r}, expected a file name")
    if ".." in name or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise PromptFileError(
            f"output is {name!r:.80}, expected a plain file name, without folder, .. or control "
            "characters"
        )
    return name if name.lower().endswith(".png") else f"{name}.png"


def _claim(role: str, name: str, line_of_name: dict[str, int]) -> str:
    """Returns a key of a file name; raises PromptFileError if an earlier line has it."""
    if (size := len(name.encode())) > _MAX_NAME:
        raise PromptFileError(f"{role} {name!r:.80} has {size} bytes, expected {_MAX_NAME} at most")
    # On macOS and Windows names are the same if only case or the coding of accents differs.
    key = unicodedata.normalize("NFC", name.casefold())
    if key in line_of_name:
        raise PromptFileError(f"{role} {name!r} is that of line {line_of_name[key]} already")
    return key


def _json_type(value: Any) -> str:
    if isinstance(value, list) and (others := {type(item) for item in value} - {str}):
        return f"a list with {_JSON_TYPES[min(others, key=str)]} in it"
    return _JSON_TYPES[type(value)]
