"""Recognising tags in text that is still arriving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class Part(Enum):
    """What a pattern holds besides literal text."""

    SPACE = "any white space, or none"
    NAME = "a name up to the closing angle bracket, on one line"


class More(Enum):
    """The text ends where the pattern could still match."""

    MORE = "more"


MORE: Final = More.MORE
SPACE: Final = Part.SPACE
NAME: Final = Part.NAME
#: Longer names are no names: text is not held back for them.
MAX_NAME = 256

_SPACES = re.compile(r"\s*")
_NAME = re.compile(r"[^>\n]*")


@dataclass(frozen=True)
class Match:
    """A pattern found: where it ends, and its names."""

    end: int
    names: list[str] = field(default_factory=list)


def scan(pattern: Sequence[str | Part], text: str, at: int) -> Match | More | None:
    """Match ``pattern`` at ``at``. None and a match are final: no further text changes them."""
    names = []
    for part in pattern:
        if part is Part.SPACE:
            at = _end(_SPACES, text, at)
        elif part is Part.NAME:
            end = _end(_NAME, text, at)
            name = text[at:end].strip()
            if end - at > MAX_NAME:
                return None
            if end == len(text):
                return MORE
            if text[end] != ">" or not name:
                return None
            names.append(name)
            at = end + 1
        elif text.startswith(part, at):
            at += len(part)
        else:
            return MORE if part.startswith(text[at:]) else None
    return Match(at, names)


def first(
    patterns: Sequence[Sequence[str | Part]], text: str, at: int
) -> tuple[int, Match] | More | None:
    """The number of the first pattern that matches at ``at``, and the match.

    No pattern may begin with another's literal text.
    """
    for number, pattern in enumerate(patterns):
        found = scan(pattern, text, at)
        if isinstance(found, Match):
            return number, found
        if found is MORE:
            return MORE
    return None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None  # both patterns match the empty string
    return found.end()
