"""Whom the evaluation asks for, where, and with which noise: the same pictures of every mode."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fd_jax.data.captions import SUBJECT_MARKER
from fd_jax.data.ffhq.record import decode_image
from fd_jax.data.ffhq.source import open_source
from fd_jax.demo.painters import Scene
from fd_jax.demo.portraits import MIN_PEOPLE, Cutout, People
from fd_jax.demo.scenes import compose
from fd_jax.errors import InputError

Kind = Literal["seen", "unseen"]  # in training: whether on a train list or a test list
KINDS: tuple[Kind, ...] = get_args(Kind)
_SPLITS = {"seen": "train", "unseen": "test"}
Pixels = UInt8[np.ndarray, "_ _ 3"]


class Subject(NamedTuple):
    """A person that pictures are asked of."""

    id: str
    kind: Kind
    noun: str  # as prompts name them
    photograph: Pixels  # the reference, as the file is
    cutout: Cutout


class Cell(NamedTuple):
    """What one picture of every mode is made from."""

    kind: Kind
    scene: int  # number of the scene
    people: tuple[int, ...]  # numbers of the subjects, from left to right
    prompt: str
    seed: int  # no other cell has it


def read_subjects(roots: Sequence[Path], most: int) -> list[Subject]:
    """Returns the people of folders in the layout of FFHQ-FastComposer, those of train lists first.

    Photographs of several people are left out.

    Args:
        roots: The folders.
        most: People on each kind of list. If there are more, they are spread over it.

    Raises:
        InputError: A list or a mask is missing, or there are fewer than two people on one kind.
    """
    roots = list(dict.fromkeys(roots))
    subjects = []
    for kind in KINDS:
        people, source = People(roots, _SPLITS[kind]), open_source(roots, _SPLITS[kind])
        counts = Counter(person.number for person in people.people)
        alone = [person for person in people.people if counts[person.number] == 1]
        if len(alone) < MIN_PEOPLE:
            where = " and ".join(map(str, roots))
            raise InputError(
                f"{where}: {len(alone)} photographs of one person in split {_SPLITS[kind]!r}, "
                f"expected at least {MIN_PEOPLE}"
            )
        chosen = np.linspace(0, len(alone) - 1, min(most, len(alone))).round().astype(int)
        for person in (alone[i] for i in chosen):
            record, cutout = source[person.number], people.cut(person)
            photograph = decode_image(record.image, record.id)
            subjects.append(Subject(record.id, kind, cutout.noun, photograph, cutout))
    return subjects


def make_grid(subjects: Sequence[Subject], scenes: Sequence[Scene], seeds: int) -> list[Cell]:
    """Returns all cells: kinds of people x one or two of them x seeds x scenes.

    Everybody of a kind takes their turn, so that all are in about as many pictures, on the left as
    on the right.
    """
    cells = []
    for kind in KINDS:
        group = [i for i, subject in enumerate(subjects) if subject.kind == kind]
        for count in (1, 2):
            for turn in range(seeds * len(scenes)):
                # Scenes begin one later with every seed, to fall on other people.
                scene = (turn + turn // len(scenes)) % len(scenes)
                people = tuple(group[i] for i in _turn(turn, len(group))[:count])
                prompt = _prompt([subjects[i].noun for i in people], scenes[scene].phrases[0])
                cells.append(Cell(kind, scene, people, prompt, seed=len(cells)))
    return cells


def _turn(turn: int, size: int) -> tuple[int, int]:
    """Two different numbers below `size`: in as many turns each is first once, and second once."""
    first = turn % size
    return first, (first + 1 + turn // size % (size - 1)) % size


def _prompt(nouns: Sequence[str], where: str) -> str:
    """Two people are named from left to right, as in the pictures of training."""
    names = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {SUBJECT_MARKER}" for noun in nouns]
    return f"{' and '.join(names)} {where}"


def compose_small(
    scene: Scene, cutouts: Sequence[Cutout], rng: np.random.Generator, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Stands people in a painted scene, at twice the size, from which the picture is averaged."""
    made = None
    while made is None:  # where one hides another
        made = compose(scene, list(cutouts), rng, 2 * side)
    return np.asarray(Image.fromarray(made.pixels).resize((side, side), Image.Resampling.BOX))
