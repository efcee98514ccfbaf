"""Binds the phrases of a caption to the faces of a photograph, or says why it cannot be done."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from fd_jax.data.prepare.faces import Face
from fd_jax.data.prepare.left_out import LeftOut
from fd_jax.data.prepare.phrases import Phrase, find_phrases
from fd_jax.data.prepare.places import AmbiguousPlace, Place, find_places, is_reversed

BYSTANDER = 0.4  # of the height of the largest face: whoever is smaller may go unnamed
_NEARER = 1.2  # how many times higher the face of somebody "in the front" is, at least


class Binding(NamedTuple):
    """Faces of a photograph, and the phrases of the caption that name them.

    Attributes:
        faces: The faces of the named people and of those named together, from left to right.
        bound: Phrase and index into `faces` of each person with words of their own, in the
            caption's order.
        notes: Remarks on words of the caption that were not used.
    """

    faces: list[Face]
    bound: list[tuple[Phrase, int]]
    notes: list[str]


def bind(caption: str, faces: Sequence[Face], extra_nouns: Collection[str] = ()) -> Binding:
    """Returns which phrase of a caption names which face.

    Words of position decide ("the woman on the left", "in the background", "second from the
    right"); people without such words are taken from left to right, in the caption's order.
    Several people named at once ("two women") have no word of their own: they are counted only.

    Args:
        caption: English text.
        faces: All faces of the photograph, in any order; at least one.
        extra_nouns: More words that name a person.

    Raises:
        LeftOut: The caption names nobody, another number of people, or only several at once; or
            its words fit no order of the faces, or more than one.
    """
    phrases = find_phrases(caption, extra_nouns)
    if not phrases:
        raise LeftOut("names nobody", f"no noun of {caption!r:.200} is known to name a person")
    try:
        places = find_places(caption, phrases)
    except AmbiguousPlace as error:
        detail = f"{str(error)!r} may belong to the person before it or after it"
        raise LeftOut("cannot be bound", f"{detail}: {caption!r:.200}") from None
    faces, notes = _named(caption, phrases, faces)
    faces = sorted(faces, key=lambda face: face.middle)
    slots = _slots(phrases, len(faces))
    if all(phrase.number != 1 for phrase in phrases):
        words = ", ".join(repr(caption[p.start : p.end]) for p in phrases)
        raise LeftOut("names several at once", f"nobody has a word of their own in {words}")
    order = [0] if len(phrases) == 1 else _order(caption, phrases, slots, places, faces)
    bound = [(phrases[i], slot) for i, slot in zip(slots, order, strict=True)]
    bound = [(phrase, face) for phrase, face in bound if phrase.number == 1]
    return Binding(list(faces), bound, notes)


def _named(
    caption: str, phrases: Sequence[Phrase], faces: Sequence[Face]
) -> tuple[Sequence[Face], list[str]]:
    """The faces that are as many as the caption names, without bystanders."""
    least = sum(phrase.number or 2 for phrase in phrases)
    is_open = any(phrase.number is None for phrase in phrases)
    if least == len(faces) or (is_open and least < len(faces)):
        return faces, []
    largest = max(face.height for face in faces)
    near = [face for face in faces if face.height >= BYSTANDER * largest]
    if least == len(near):
        return near, [f"{len(faces) - least} bystanders with small faces"]
    words = ", ".join(repr(caption[p.start : p.end]) for p in phrases)
    named = f"{least}{' or more' if is_open else ''} ({words})"
    raise LeftOut("other number of people", f"the caption names {named}, faces: {len(faces)}")


def _slots(phrases: Sequence[Phrase], count: int) -> list[int]:
    """For each person the index of their phrase, in the caption's order."""
    open_phrases = [i for i, phrase in enumerate(phrases) if phrase.number is None]
    if len(open_phrases) > 1:
        raise LeftOut("names several at once", f"{len(open_phrases)} phrases are of unknown number")
    rest = count - sum(phrase.number or 0 for phrase in phrases)
    return [
        i
        for i, phrase in enumerate(phrases)
        for _ in range(rest if phrase.number is None else phrase.number)
    ]


def _order(
    caption: str,
    phrases: Sequence[Phrase],
    slots: Sequence[int],
    places: Sequence[Place],
    faces: Sequence[Face],
) -> list[int]:
    """For each person of `slots` the index of their face."""
    certain = [place for place in places if place.is_certain]
    placed = {i: place for place in certain if place.other < 0 for i in [place.phrase]}
    fixed = _fixed(slots, placed, faces)
    free = [i for i in range(len(faces)) if i not in fixed.values()]
    unplaced = [i for i in range(len(slots)) if i not in fixed]
    is_plural = any(phrases[slots[i]].number != 1 for i in unplaced)
    if is_plural and any(slots[i] != slots[unplaced[0]] for i in unplaced):
        raise LeftOut(
            "cannot be bound",
            f"some are named at once, and no words say where the others are: {caption!r:.200}",
        )
    if is_reversed(caption):
        free.reverse()
    order = fixed | dict(zip(unplaced, free, strict=True))
    relations = [place for place in certain if place.other >= 0]
    for place in relations:
        a, b = slots.index(place.phrase), slots.index(place.other)
        if {a, b} <= set(unplaced) and not _holds(place, order[a], order[b]):
            order[a], order[b] = order[b], order[a]
    for place in places:
        _check(caption, phrases, slots, place, order, len(faces))
    return [order[i] for i in range(len(slots))]


def _fixed(slots: Sequence[int], placed: dict[int, Place], faces: Sequence[Face]) -> dict[int, int]:
    """The people whose faces the words of position determine: slot -> face."""
    people = {kind: [] for kind in ("left", "right", "middle", "front", "back", "ordinal")}
    for slot, phrase in enumerate(slots):
        if phrase in placed:
            people[placed[phrase].kind].append(slot)
    count = len(faces)
    fixed: dict[int, int] = {}

    def put(slot: int, face: int) -> None:
        if not 0 <= face < count or face in fixed.values():
            raise LeftOut("cannot be bound", f"words of position contradict one another: {count}")
        fixed[slot] = face

    for i, slot in enumerate(people["left"]):
        put(slot, i)
    for i, slot in enumerate(people["right"]):
        put(slot, count - len(people["right"]) + i)
    for slot in people["ordinal"]:
        rank = placed[slots[slot]].rank
        put(slot, rank if rank >= 0 else count + rank)
    middle = people["middle"]
    if (count - len(middle)) % 2 and middle:
        raise LeftOut("cannot be bound", f"{len(middle)} of {count} people are in the middle")
    for i, slot in enumerate(middle):
        put(slot, (count - len(middle)) // 2 + i)
    for kind, sign in (("front", -1), ("back", 1)):
        ranked = sorted(range(count), key=lambda i: sign * faces[i].height)
        chosen, others = ranked[: len(people[kind])], ranked[len(people[kind]) :]
        if chosen and others:
            heights = sorted((faces[chosen[-1]].height, faces[others[0]].height))
            if heights[1] < _NEARER * heights[0]:
                text = f"nobody is clearly in the {kind}: faces of {heights[0]} and {heights[1]}"
                raise LeftOut("cannot be bound", f"{text} pixels' height")
        for slot, face in zip(people[kind], sorted(chosen), strict=True):
            put(slot, face)
    return fixed


def _holds(place: Place, face: int, other: int) -> bool:
    return face < other if place.kind == "left of" else face > other


def _check(
    caption: str,
    phrases: Sequence[Phrase],
    slots: Sequence[int],
    place: Place,
    order: dict[int, int],
    count: int,
) -> None:
    """Raises LeftOut where the order contradicts what the caption says."""
    face = order[slots.index(place.phrase)]
    if place.other >= 0:
        is_right = _holds(place, face, order[slots.index(place.other)])
    else:
        is_right = {"left": 2 * face < count, "right": 2 * face >= count - 1}.get(place.kind, True)
    if not is_right:
        phrase = phrases[place.phrase]
        words = caption[phrase.start : phrase.end]
        raise LeftOut(
            "cannot be bound",
            f"{words!r} is said to be {place.kind}, which fits no order: {caption!r:.200}",
        )
