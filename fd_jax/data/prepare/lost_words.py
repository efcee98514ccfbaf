"""Notes people whose words lie beyond the 77 tokens of a prompt."""

import functools

from fd_jax.assets import TOKENIZER
from fd_jax.data.captions import MAX_TOKENS, Tokenizer, load_tokenizer
from fd_jax.data.prepare.item import Result

_ROOM = MAX_TOKENS - 2  # less start and end of text


def note_lost_words(result: Result, caption: str) -> Result:
    """Adds a note where training has to leave out the last person that a caption names."""
    words = caption[: result.last_word]
    if len(words.encode()) <= _ROOM:  # no token is shorter than a byte
        return result
    count = len(_tokenizer()(words, add_special_tokens=False, verbose=False).input_ids)
    if count <= _ROOM:
        return result
    note = f"the last person is named by token {count}, training reads {_ROOM}"
    return result._replace(notes=(*result.notes, note))


@functools.cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer(TOKENIZER)
