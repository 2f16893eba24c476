"""Stand-ins for a screen and a person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import RenderableType

from headgate.assistant import AnswerEvent
from headgate.chat import Content
from headgate.terminal.chat import Consent


@dataclass
class Screen:
    """Remembers what it was shown."""

    on_event: Callable[[AnswerEvent], None] = lambda event: None
    content: str = ""
    notes: list[str] = field(default_factory=list)
    printed: list[RenderableType] = field(default_factory=list)

    def begin(self) -> None: ...

    def show(self, event: AnswerEvent) -> None:
        if isinstance(event, Content):
            self.content += event.text
        self.on_event(event)

    def tick(self) -> None: ...

    def end(self) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def print(self, what: RenderableType) -> None:
        self.printed.append(what)


@dataclass
class Person:
    """Answers as told, in order.

    Attributes:
        asked: the calls it was asked about.
    """

    consents: list[Consent] = field(default_factory=list)
    results: list[str | None] = field(default_factory=list)
    confirms: bool = False
    asked: list[str] = field(default_factory=list)

    def consent(self, call: str, name: str) -> Consent:
        self.asked.append(call)
        return self.consents.pop(0)

    def result(self, call: str) -> str | None:
        self.asked.append(call)
        return self.results.pop(0)

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.confirms
