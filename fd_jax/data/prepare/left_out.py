"""Why a photograph is left out of a training set."""

from typing import Literal, get_args

Reason = Literal[
    "hidden file",
    "no photograph",
    "unreadable",
    "bad size",
    "duplicate",
    "no caption",
    "bad caption",
    "names nobody",
    "no face",
    "face too small",
    "blurred",
    "bad mask",
    "mask empty",
    "mask everything",
    "mask misses face",
    "other number of people",
    "names several at once",
    "cannot be bound",
    "gone",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


class LeftOut(Exception):
    """A photograph that cannot be trained on, and the reason.

    Attributes:
        reason: Reason, by which photographs are counted.
        detail: Message: the value found and the one expected.
    """

    def __init__(self, reason: Reason, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason: Reason = reason
        self.detail = detail

    def __reduce__(self):  # so that it comes back whole from another process
        return type(self), (self.reason, self.detail)
