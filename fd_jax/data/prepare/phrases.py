"""Finds the noun phrases of a caption that name people. English, by rules: no model is run."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from fd_jax.data.prepare import nouns

_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]|_")
_COUNTED = re.compile(r"(\d+)([a-z-]+)")  # "2girls", as tags are written
_MOST_WORDS = 6  # of a phrase before its noun; without a determiner half as many
_VERBS = {"is", "are", "was", "were", "be", "being"}


class Phrase(NamedTuple):
    """Words of a caption that name one person, or several at once."""

    start: int  # character offsets in the caption, the second exclusive
    end: int
    noun: str  # lower case
    number: int | None  # of the people it names; None if the words leave it open
    is_definite: bool  # "the man", "both women"


class _Token(NamedTuple):
    text: str  # lower case
    start: int
    end: int


def find_phrases(caption: str, extra_nouns: Collection[str] = ()) -> list[Phrase]:
    """Returns the phrases that name people, in order, each person's first one only.

    A phrase ends with its noun. "The man", after "a man", is the same man; after "the man" in the
    same sentence he is another. What somebody is said to be ("is a doctor", "as a nurse"), people
    that are denied ("no people") and statues are no people of the photograph.

    Args:
        caption: English text.
        extra_nouns: More words that name one person each, such as a proper name.
    """
    singular = nouns.SINGULAR | {noun.lower() for noun in extra_nouns}
    tokens = [_Token(m[0].lower(), m.start(), m.end()) for m in _WORD.finditer(caption)]
    found: list[Phrase] = []
    for first, last, number in _candidates(tokens, singular):
        phrase = Phrase(
            tokens[first].start,
            tokens[last].end,
            tokens[last].text,
            number,
            tokens[first].text in nouns.DEFINITE,
        )
        if not _is_nobody(tokens, first, found) and not _is_known(caption, phrase, found):
            found.append(phrase)
    return found


def _candidates(
    tokens: Sequence[_Token], singular: Collection[str]
) -> Iterator[tuple[int, int, int | None]]:
    """First token, noun and number of each phrase."""
    end = 0  # of the phrase before
    for i, token in enumerate(tokens):
        follower = tokens[i + 1].text if i + 1 < len(tokens) else ""
        if i < end or follower in nouns.COMPOUNDS.get(token.text, ()):
            continue
        if token.text in nouns.COLLECTIVES:
            candidate = _collective(tokens, i, end)
        elif token.text in singular and _is_noun(follower, singular):
            candidate = None  # "woman doctor": the last noun is the phrase's
        else:
            candidate = _plain(tokens, i, end, singular)
        if candidate is not None:
            yield candidate
            end = candidate[1] + 1


def _is_noun(text: str, singular: Collection[str]) -> bool:
    return text in singular or text in nouns.PLURAL


def _plain(
    tokens: Sequence[_Token], i: int, end: int, singular: Collection[str]
) -> tuple[int, int, int | None] | None:
    text = tokens[i].text
    if (counted := _COUNTED.fullmatch(text)) and _is_noun(counted[2], singular):
        return i, i, int(counted[1])
    if not _is_noun(text, singular):
        return None
    first = _first_word(tokens, i, end)
    return first, i, 1 if text in singular else _number(tokens[first:i])


def _collective(tokens: Sequence[_Token], i: int, end: int) -> tuple[int, int, int | None] | None:
    """A phrase such as "a couple", "a group of three friends" or "two couples"."""
    number = nouns.COLLECTIVES[tokens[i].text]
    first = _first_word(tokens, i, end)
    if i + 1 < len(tokens) and tokens[i + 1].text == "of":
        for last in range(i + 2, min(i + 2 + _MOST_WORDS, len(tokens))):
            if tokens[last].text in nouns.PLURAL:
                return first, last, number or _number(tokens[i + 2 : last])
            if tokens[last].text in nouns.BREAKS or not tokens[last].text[0].isalnum():
                break
        counted = _number(tokens[i + 2 : i + 3])  # "a family of four"
        return (first, i, counted) if counted else None  # None: "a couple of apples"
    return (first, i, number) if tokens[i].text in nouns.ALWAYS_PEOPLE else None


def _number(words: Sequence[_Token]) -> int | None:
    for word in words:
        if word.text.isdecimal():
            return int(word.text)
        if word.text in nouns.NUMBERS:
            return nouns.NUMBERS[word.text]
    return None


def _first_word(tokens: Sequence[_Token], noun: int, end: int) -> int:
    """The determiner before a noun, else the first of the words that may describe it."""
    first = noun
    for i in range(noun - 1, max(end, noun - 1 - _MOST_WORDS) - 1, -1):
        text = tokens[i].text
        if text in nouns.DETERMINERS or text.isdecimal():
            is_second = (
                i > end and tokens[i - 1].text in nouns.DETERMINERS
            )  # "the two", "his other"
            return i - 1 if is_second else i
        is_joint = text in (",", "and") and i and tokens[i - 1].text in nouns.ADJECTIVES
        is_described = text in nouns.ADJECTIVES
        if is_joint or (is_described and tokens[i + 1].text in (",", "and")):
            continue
        if not text[0].isalnum() or text in nouns.BREAKS:
            break
        if noun - i <= _MOST_WORDS // 2:
            first = i
    return first


def _is_nobody(tokens: Sequence[_Token], first: int, found: Sequence[Phrase]) -> bool:
    before = [token.text for token in tokens[max(first - 3, 0) : first]]
    if not before:
        return False
    determiner = tokens[first].text
    if before[-1] in ("no", "without") or (before[-1] == "not" and determiner == "a"):
        return True
    if before[-1] in ("as", "like") and determiner in ("a", "an"):
        return bool(found)
    if before[-1] == "of" and len(before) > 1 and before[-2] in nouns.EFFIGIES:
        return True
    if before[-1] in _VERBS and len(before) > 1 and determiner in ("a", "an"):
        subject = tokens[first - 2]
        is_of_phrase = any(phrase.end == subject.end for phrase in found)
        return is_of_phrase or (bool(found) and subject.text in ("who", "he", "she"))
    return False


def _is_known(caption: str, phrase: Phrase, found: Sequence[Phrase]) -> bool:
    """Whether earlier words name whom the phrase names."""
    if not phrase.is_definite:
        return False
    if phrase.number != 1:
        return bool(found)  # "the couple", "both women"
    same = [earlier for earlier in found if earlier.noun == phrase.noun and earlier.number == 1]
    if not same:
        return False
    between = caption[same[-1].end : phrase.start]
    return not (same[-1].is_definite and not re.search(r"[.!?]", between))
