"""Reads from a caption where in the photograph a person is said to be."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from fd_jax.data.prepare.phrases import Phrase

Kind = Literal["left", "right", "middle", "front", "back", "ordinal", "left of", "right of"]

_WHOLE = r"(?: of (?:the |this )?(?:image|picture|photo|photograph|frame|scene|shot|group))?"
_SIDE = r"(?:far |very |extreme )?(?P<side>left|right)(?:[- ]hand)?(?: side| half| part| edge)?"
_ORDINALS = {"second": 1, "2nd": 1, "third": 2, "3rd": 2, "fourth": 3, "4th": 3}

_PLACES = re.compile(
    rf"(?P<ordinal>{'|'.join(_ORDINALS)})(?: person)? from (?:the )?(?P<end>left|right)\b"
    rf"|\b(?:(?:on|at|to|in) (?:the )?{_SIDE}{_WHOLE}\b(?P<of> of\b)?)"
    r"|\((?P<bracket>left|right|middle|cent(?:er|re))\)"
    rf"|\bin the (?P<middle>middle|cent(?:er|re)){_WHOLE}\b(?! of\b)"
    r"|\b(?:in|at) (?:the )?(?:very )?(?P<depth>front|foreground|back|background|rear)\b(?! of\b)",
    re.IGNORECASE,
)
_GAZE = re.compile(
    r"\b(?:look|fac|turn|gaz|glanc|point|lean|tilt|walk|mov|runn?|step|star)\w*"
    r"(?: \w+ly| slightly)?\s+$",
    re.IGNORECASE,
)
_INSIDE = re.compile(r"\b(left|right)(?:-?most)?\b|\b(middle|cent(?:er|re))\b", re.IGNORECASE)
_ORDER = re.compile(r"\b(left to right|right to left)\b", re.IGNORECASE)
_FILLER = re.compile(
    r"[\s,:]*(?:(?:is|are|stands?|sits?|there|we see|we|see|standing|sitting|a photo of)[\s,:]*)*",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"(?:^|[,;.:]|\b(?:and|while|with|,))\s*$", re.IGNORECASE)


class Place(NamedTuple):
    """Where the caption says that the person of a phrase is."""

    phrase: int  # index of the phrase
    kind: Kind
    rank: int = 0  # of an ordinal, from the left; negative from the right, -1 being rightmost
    other: int = -1  # index of the phrase that "left of" and "right of" refer to
    is_certain: bool = (
        True  # False where the words may also belong to a thing ("with a dog on ...")
    )


class AmbiguousPlace(Exception):
    """Words of position that may belong to either of two people."""


def is_reversed(caption: str) -> bool:
    """Whether the caption says that it names people from right to left."""
    found = _ORDER.search(caption)
    return found is not None and found[1].lower() == "right to left"


def find_places(caption: str, phrases: Sequence[Phrase]) -> list[Place]:
    """Returns what the caption says of the places of people, in no order.

    Args:
        caption: The text.
        phrases: Its phrases that name people, in order.

    Raises:
        AmbiguousPlace: Words such as "on the left" stand between two people and may be either's.
    """
    places = list(_inside_phrases(caption, phrases))
    covered = [(phrase.start, phrase.end) for phrase in phrases]
    for match in _PLACES.finditer(caption):
        if any(start < match.end() and match.start() < end for start, end in covered):
            continue
        if _GAZE.search(caption[: match.start()]):
            continue
        if match["of"]:
            places += _relation(caption, match, phrases)
            continue
        kind, rank = _meaning(match)
        owner, is_certain = _owner(caption, match, phrases)
        if owner is not None:
            places.append(Place(owner, kind, rank, is_certain=is_certain))
    return places


def _inside_phrases(caption: str, phrases: Sequence[Phrase]) -> Iterator[Place]:
    for i, phrase in enumerate(phrases):
        if match := _INSIDE.search(caption[phrase.start : phrase.end]):
            kind: Any = match[1].lower() if match[1] else "middle"
            yield Place(i, kind)


def _meaning(match: re.Match[str]) -> tuple[Kind, int]:
    if match["ordinal"]:
        rank = _ORDINALS[match["ordinal"].lower()]
        return "ordinal", rank if match["end"].lower() == "left" else -1 - rank
    if match["depth"]:
        return (
            "front"
            if match["depth"].lower().startswith("fr") or match["depth"].lower() == "foreground"
            else "back"
        ), 0
    side = (match["side"] or match["bracket"] or "").lower()
    return (side if side in ("left", "right") else "middle"), 0


def _relation(caption: str, match: re.Match[str], phrases: Sequence[Phrase]) -> Iterator[Place]:
    """ "to the left of a woman": nothing is learnt where what follows is no person."""
    before = [i for i, phrase in enumerate(phrases) if phrase.end <= match.start()]
    after = [i for i, phrase in enumerate(phrases) if phrase.start >= match.end()]
    if before and after and not caption[match.end() : phrases[after[0]].start].strip():
        kind = "left of" if match["side"].lower() == "left" else "right of"
        yield Place(before[-1], kind, other=after[0])


def _owner(
    caption: str, match: re.Match[str], phrases: Sequence[Phrase]
) -> tuple[int | None, bool]:
    """The phrase that words of position belong to, and whether it is certain."""
    before = [i for i, phrase in enumerate(phrases) if phrase.end <= match.start()]
    after = [i for i, phrase in enumerate(phrases) if phrase.start >= match.end()]
    between = caption[phrases[before[-1]].end : match.start()] if before else ""
    if before and re.search("[.;]", between):
        before = []
    begins_clause = bool(_CLAUSE.search(caption[: match.start()]))
    follows = caption[match.end() : phrases[after[0]].start] if after else ""
    leads = bool(after) and begins_clause and _FILLER.fullmatch(follows) is not None
    if leads and before and not between.strip(" ,"):
        if "," in follows:
            raise AmbiguousPlace(match[0])
        return after[0], True
    if leads:
        return after[0], True
    if not before:
        return None, False
    is_of_thing = re.search(r"\b(with|near|beside|behind|holding|wearing)\b", between)
    return before[-1], is_of_thing is None
