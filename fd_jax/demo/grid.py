"""The evaluation grid: people x scenes x seeds, identical for every mode."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from fd_jax.data.ffhq.folder import Split
from fd_jax.data.ffhq.record import decode_image
from fd_jax.data.ffhq.source import open_source
from fd_jax.demo.painters import Scene
from fd_jax.demo.portraits import MIN_PEOPLE, Cutout, People
from fd_jax.demo.scenes import compose
from fd_jax.errors import InputError
from fd_jax.evaluation.cases import Case, Person, name_people

Kind = Literal["seen", "unseen"]  # in training: people of a train list or of a test list
KINDS: tuple[Kind, ...] = get_args(Kind)
_SPLITS: dict[Kind, Split] = {"seen": "train", "unseen": "test"}


class Subject(NamedTuple):
    """A person to insert."""

    kind: Kind
    person: Person
    cutout: Cutout


def read_subjects(roots: Sequence[Path], most: int) -> list[Subject]:
    """Reads the people of folders in the layout of FFHQ-FastComposer, train lists first.

    Photographs of several people are skipped.

    Args:
        roots: Folders of photographs.
        most: Largest number of people of each kind, evenly spaced over its lists.

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
            subjects.append(Subject(kind, Person(record.id, cutout.noun, photograph), cutout))
    return subjects


def make_grid(subjects: Sequence[Subject], scenes: Sequence[Scene], seeds: int) -> list[Case]:
    """Enumerates all cases: kinds of people x one or two of them x seeds x scenes.

    The number of a prompt is that of its scene. All people of a kind appear in about the same
    number of images, on either side.
    """
    cases: list[Case] = []
    groups: dict[tuple[int, ...], int] = {}
    for kind in KINDS:
        group = [i for i, subject in enumerate(subjects) if subject.kind == kind]
        for count in (1, 2):
            for turn in range(seeds * len(scenes)):
                # Each seed shifts the scenes by one, to pair them with other people.
                scene = (turn + turn // len(scenes)) % len(scenes)
                people = tuple(group[i] for i in _turn(turn, len(group))[:count])
                named = name_people([subjects[i].person.noun for i in people])
                prompt = f"{named} {scenes[scene].phrases[0]}"
                number = groups.setdefault(people, len(groups))
                same = [c for c in cases if (c.group, c.prompt_number) == (number, scene)]
                case = Case(kind, number, scene, len(same), people, prompt, seed=len(cases))
                cases.append(case)
    return cases


def _turn(turn: int, size: int) -> tuple[int, int]:
    """Returns two indices below `size`; over `size` turns each is first and second once."""
    first = turn % size
    return first, (first + 1 + turn // size % (size - 1)) % size


def compose_small(
    scene: Scene, cutouts: Sequence[Cutout], rng: np.random.Generator, side: int
) -> UInt8[np.ndarray, "side side 3"]:
    """Places people in a painted scene at twice the size, and averages 2 x 2 pixels."""
    made = None
    while made is None:  # one person hides another
        made = compose(scene, list(cutouts), rng, 2 * side)
    return np.asarray(Image.fromarray(made.pixels).resize((side, side), Image.Resampling.BOX))
