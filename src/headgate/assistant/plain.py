"""Answers in which nothing may be called."""

from __future__ import annotations

from headgate.assistant.stop import overlap
from headgate.chat.output import Content, Event, OutputParser, Reasoning

OPEN = "<tool_call>"
#: Stands for the tag while the parser looks. An unpaired surrogate is in no decoded text.
MARK = "\udcff"


class PlainParser:
    """An :class:`OutputParser` for which calls are content like any other."""

    def __init__(self, thinking: bool) -> None:
        self._inner = OutputParser((), thinking=thinking)
        self._held = ""

    def push(self, text: str) -> list[Event]:
        """The events that ``text`` completes."""
        text = self._held + text
        keep = overlap(text, OPEN)
        self._held = text[len(text) - keep :]
        return _restored(self._inner.push(text[: len(text) - keep].replace(OPEN, MARK)))

    def finish(self) -> list[Event]:
        """The events that were held back; the text is complete."""
        held, self._held = self._held, ""
        return _restored([*self._inner.push(held), *self._inner.finish()])


def _restored(events: list[Event]) -> list[Event]:
    return [
        type(event)(event.text.replace(MARK, OPEN))
        if isinstance(event, (Content, Reasoning))
        else event
        for event in events
    ]
