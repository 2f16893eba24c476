"""What an answer consists of, piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

from headgate.chat.schema import ToolCall


@dataclass(frozen=True)
class Reasoning:
    """A piece of reasoning."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of plain content."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A tool call begins; calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the JSON text of a call's arguments."""

    index: int
    fragment: str


@dataclass(frozen=True)
class CallEnd:
    """A tool call is complete; its fragments together are the JSON of its arguments."""

    index: int
    call: ToolCall


Event = Reasoning | Content | CallStart | CallArguments | CallEnd
