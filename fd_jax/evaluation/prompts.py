"""Prompts of an evaluation: a set that comes with the package, and files of others."""

import ast
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from fd_jax.errors import InputError
from fd_jax.files import local_path

PEOPLE = "{people}"  # where a prompt names its people
_MAX_BYTES = 1_000_000


class Prompt(NamedTuple):
    """A prompt, with `{people}` in the place of its people."""

    kind: str  # such as accessory, style, action, context
    text: str


class PromptFile(NamedTuple):
    """What a file holds."""

    prompts: list[Prompt]
    nouns: dict[str, str]  # word of each person by name, if the file says it


_SET = {
    "accessory": (
        "a portrait of {people} wearing a straw hat",
        "{people} wearing a green knitted cap",
        "{people} wearing round sunglasses",
        "{people} wearing a blue raincoat",
        "{people} wearing a silver necklace",
        "{people} in the uniform of a pilot",
        "{people} in a doctor's white coat",
        "{people} wearing a bicycle helmet",
        "{people} wearing an orange life jacket",
        "{people} wearing large headphones",
    ),
    "style": (
        "an oil painting of {people}",
        "a pencil drawing of {people}",
        "a stained glass window of {people}",
        "a bronze statue of {people}",
        "a comic strip of {people}",
        "a mosaic of {people} made of small tiles",
        "a faded photograph of {people} from the nineteenth century",
        "a paper cut-out of {people}",
        "a linocut of {people} in two colours",
        "a pastel of {people} in soft light",
    ),
    "action": (
        "{people} playing the guitar",
        "{people} rowing a boat",
        "{people} drinking a cup of tea",
        "{people} painting a fence",
        "{people} feeding pigeons",
        "{people} climbing a ladder",
        "{people} reading a newspaper",
        "{people} peeling potatoes in a kitchen",
        "{people} riding a bicycle",
        "{people} speaking into a microphone",
    ),
    "context": (
        "{people} in a library",
        "{people} in a field of sunflowers",
        "{people} on a railway platform",
        "{people} in front of a waterfall",
        "{people} in a busy market",
        "{people} on a rooftop at night",
        "{people} in an empty swimming pool",
        "{people} in a desert with dunes",
        "{people} with a lighthouse in the background",
        "{people} in a greenhouse full of plants",
    ),
}
PROMPTS = [Prompt(kind, text) for kind, texts in _SET.items() for text in texts]


def read_prompts(path: Path) -> PromptFile:
    """Reads prompts from a file.

    Args:
        path: A text file with a prompt on each line; a JSON file with a list of prompts, or lists
            by kind; or a `data.py` of FastComposer's evaluation, of which strings are read and
            nothing is executed. A prompt has `{people}` where its people are named.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    path = local_path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"prompts {path} are larger than {_MAX_BYTES} bytes, expected text")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"prompts {path} cannot be read: {error}") from error
    nouns: dict[str, str] = {}
    if path.suffix == ".py":
        prompts, nouns = _of_python(text, path)
    elif path.suffix == ".json":
        prompts = _of_json(text, path)
    else:
        lines = [line.strip() for line in text.splitlines()]
        prompts = [Prompt("prompts", line) for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"prompts {path} hold no prompt, expected at least one")
    for prompt in prompts:
        if prompt.text.count(PEOPLE) != 1:
            raise InputError(
                f"prompts {path}: {prompt.text!r:.80} names its people {prompt.text.count(PEOPLE)} "
                f"times, expected {PEOPLE} once"
            )
    return PromptFile(prompts, nouns)


def _of_json(text: str, path: Path) -> list[Prompt]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"prompts {path} are no readable JSON: {error}") from error
    by_kind = {"prompts": content} if isinstance(content, list) else content
    if not isinstance(by_kind, dict) or not all(
        isinstance(texts, list) and all(isinstance(entry, str) for entry in texts)
        for texts in by_kind.values()
    ):
        raise InputError(f"prompts {path}: expected a list of strings, or lists of strings by kind")
    return [Prompt(kind, entry) for kind, texts in by_kind.items() for entry in texts]


def _of_python(text: str, path: Path) -> tuple[list[Prompt], dict[str, str]]:
    """Reads functions `get_KIND_prompts` and the dictionary IMAGE_TO_GENDER_EVAL."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"prompts {path} are no readable Python file: {error}") from error
    by_kind: dict[str, list[str]] = {}
    nouns: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            if found := re.fullmatch(r"get_(\w+)_prompts", node.name):
                lists = [part for part in ast.walk(node) if isinstance(part, ast.List)]
                longest = max(lists, key=lambda part: len(part.elts), default=ast.List([]))
                by_kind[found[1]] = [_template(entry, path) for entry in longest.elts]
        elif isinstance(node, ast.Assign):
            targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if targets == ["IMAGE_TO_GENDER_EVAL"]:
                nouns = _literal(node.value, path)
    # The order in which FastComposer numbers its prompts.
    order = ["accessory", "style", "action", "context"]
    kinds = sorted(by_kind, key=lambda kind: order.index(kind) if kind in order else len(order))
    return [Prompt(kind, entry) for kind in kinds for entry in by_kind[kind]], nouns


def _literal(node: ast.expr, path: Path) -> dict[str, str]:
    try:
        value: Any = ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"prompts {path}: line {node.lineno} is no literal: {error}") from error
    if not isinstance(value, dict) or not all(
        isinstance(entry, str) and entry for pair in value.items() for entry in pair
    ):
        raise InputError(f"prompts {path}: line {node.lineno}: expected words by name")
    return value


def _template(node: ast.expr, path: Path) -> str:
    """Returns a string literal, `"...".format(...)` or f-string with `{people}` put in."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "format"
    ):
        node = node.func.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return re.sub(r"\ba \{0\} \{1\}", lambda _: PEOPLE, node.value)
    if isinstance(node, ast.JoinedStr):
        parts = []
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            elif isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
                parts.append("{" + part.value.id + "}")
            else:
                break
        else:
            text = "".join(parts).replace("{subject}", PEOPLE)
            return text.replace("a {unique_token} {class_token}", PEOPLE)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise InputError(
        f"prompts {path}: line {node.lineno} is no string, format call or f-string of names"
    )
