"""The ways in which an answer is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Failure(str, Enum):
    """One class of wrong answers; an answer has the first that applies, in this order."""

    REPETITION = "repetition"  # runs in a loop, or makes the same call again
    TOO_LONG = "too long"  # the limit of tokens ended it
    EARLY_STOP = "early stop"  # ended in the middle, or before everything was done
    MALFORMED = "malformed"  # no call or JSON can be read from it
    REFUSAL = "refusal"  # words where a call or JSON was due
    NEEDLESS_CALL = "needless call"  # a call where words were due
    WRONG_FUNCTION = "wrong function"
    MISSING_ARGUMENT = "missing argument"
    INVENTED_ARGUMENT = "invented argument"
    WRONG_TYPE = "wrong type"
    WRONG_QUOTING = "wrong quoting"  # right but for quotes, escapes or white space
    WRONG_VALUE = "wrong value"


@dataclass(frozen=True)
class Verdict:
    """What became of one answer.

    Attributes:
        failure: None if it is right.
        why: one line for people.
        also: further figures of the same answer, by name.
    """

    failure: Failure | None = None
    why: str = ""
    also: dict[str, bool] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return self.failure is None
