"""Reads the people of an evaluation from a folder of photographs."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fd_jax.assets import PEOPLE
from fd_jax.data.ffhq.folder import is_folder, item_path
from fd_jax.data.ffhq.record import decode_image
from fd_jax.data.ffhq.source import open_source
from fd_jax.data.photographs import IMAGE_SUFFIXES, load_photograph
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Person
from fd_jax.files import local_path

NOUNS = "nouns.json"


def read_people(folder: Path | None, nouns: Mapping[str, str]) -> list[Person]:
    """Reads people in the order of their names.

    Args:
        folder: Folder of a photograph, or a folder of photographs, for each person, as
            FastComposer's evaluation has it; or in the layout of FFHQ-FastComposer. By default
            the bundled people. Of several photographs the first is the reference.
        nouns: Word of each person by name, before those of a file `nouns.json` in the folder; a
            name that has none is a "person". If there are any, only these people are taken.

    Raises:
        InputError: There is nobody, or a photograph or a file cannot be used.
    """
    folder = PEOPLE if folder is None else local_path(folder)
    if not folder.is_dir():
        raise InputError(f"people {folder} is no folder, expected one of photographs")
    if is_folder(folder):
        return _of_dataset(folder)
    taken = dict(nouns)
    nouns = _read_nouns(folder / NOUNS) | taken
    people = []
    for entry in sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name)):
        files = _photographs(entry)
        if not files or (taken and entry.stem not in taken):
            continue
        reference, *others = map(load_photograph, files)
        noun = nouns.get(entry.stem, "person")
        people.append(Person(entry.stem, noun, reference, tuple(others), files[0]))
    if missing := sorted(set(taken) - {person.id for person in people}):
        raise InputError(f"people {folder} lacks {', '.join(missing[:5])}, which the prompts name")
    if not people:
        raise InputError(f"people {folder} holds no photographs, expected one for each person")
    return people


def _photographs(entry: Path) -> list[Path]:
    """Returns the photographs of a person: a file, or those of a folder in the order of names."""
    if entry.is_file():
        return [entry] if entry.suffix.lower() in IMAGE_SUFFIXES else []
    files = sorted(entry.iterdir()) if entry.is_dir() else []
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _read_nouns(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(content, dict) or not all(
        isinstance(word, str) and word.strip() for word in content.values()
    ):
        raise InputError(f'{path}: expected words by name, such as {{"anna": "woman"}}')
    return content


def _of_dataset(folder: Path) -> list[Person]:
    """Reads the photographs of one person in the layout of FFHQ-FastComposer."""
    source, people = open_source([folder], "all"), []
    for number in range(len(source)):
        record = source[number]
        persons = [segment for segment in record.segments if segment.coco_label == "person"]
        if len(persons) == 1:
            word = record.caption[persons[0].start : persons[0].end].split()
            noun = word[-1] if word else "person"
            pixels = decode_image(record.image, record.id)
            path = item_path(folder, record.id, ".jpg")
            people.append(Person(record.id, noun, pixels, path=path))
    if not people:
        raise InputError(f"people {folder} holds no photograph of one person, expected some")
    return people
