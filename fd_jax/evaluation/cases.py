"""The pictures of an evaluation: people x prompts x images, the same for every mode."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fd_jax.data.captions import SUBJECT_MARKER
from fd_jax.errors import InputError
from fd_jax.evaluation.prompts import PEOPLE, Prompt
from fd_jax.sampling.stages import SamplerConfig

Pixels = UInt8[np.ndarray, "_ _ 3"]


class Person(NamedTuple):
    """A person to insert."""

    id: str
    noun: str  # the word in prompts
    photograph: Pixels  # the reference
    others: tuple[Pixels, ...] = ()  # further photographs, which no model sees
    path: Path | None = None  # file of the reference


class Case(NamedTuple):
    """Inputs of one picture."""

    kind: str  # by which the report has its tables
    group: int  # number of the combination of people
    prompt_number: int
    instance: int  # number of the picture among those of these people and this prompt
    people: tuple[int, ...]  # indices of the people, from left to right
    prompt: str  # with markers
    seed: int

    @property
    def name(self) -> str:
        """Stem of the picture's file; FastComposer's evaluation has the same."""
        numbers = self.group, self.prompt_number, self.instance
        return "subject_{:04d}_prompt_{:04d}_instance_{:04d}".format(*numbers)


class Run(NamedTuple):
    """A way to make the pictures."""

    name: str
    sampler: SamplerConfig | None  # None: the pictures were made elsewhere


def make_cases(
    people: Sequence[Person],
    prompts: Sequence[Prompt],
    *,
    subjects: int = 1,
    images: int = 4,
    most: int | None = None,
    seed: int = 0,
) -> list[Case]:
    """Enumerates all pictures.

    Args:
        people: All people.
        prompts: All prompts.
        subjects: Number of people in a picture.
        images: Pictures of each group of people and prompt.
        most: Largest number of groups, drawn by `seed`; by default all.
        seed: Seed of the first picture; each has its own.

    Raises:
        InputError: There are fewer people than a picture has.
    """
    if len(people) < subjects:
        raise InputError(f"there are {len(people)} people, expected {subjects} or more")
    groups = list(itertools.combinations(range(len(people)), subjects))
    if most is not None and most < len(groups):
        drawn = np.random.default_rng(seed).choice(len(groups), most, replace=False)
        groups = [groups[i] for i in sorted(drawn)]
    cases = []
    for group, members in enumerate(groups):
        named = name_people([people[i].noun for i in members])
        for number, prompt in enumerate(prompts):
            text = prompt.text.replace(PEOPLE, named)
            for instance in range(images):
                own = (seed + len(cases)) % 2**32
                cases.append(Case(prompt.kind, group, number, instance, members, text, own))
    return cases


def name_people(nouns: Sequence[str]) -> str:
    """Returns `a man <|image|> and a woman <|image|>` of their nouns."""
    names = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} {SUBJECT_MARKER}" for noun in nouns]
    return " and ".join(names)
