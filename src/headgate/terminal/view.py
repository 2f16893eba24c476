"""What is shown of an answer while it arises."""

from __future__ import annotations

import sys
from io import StringIO
from time import perf_counter
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from headgate.assistant import AnswerEvent, Progress
from headgate.chat import CallArguments, CallEnd, CallStart, Content, Reasoning
from headgate.terminal.markdown import MarkdownStream, Tail
from headgate.terminal.text import call_text, printable, visible

#: Seconds between two drawings of what grows.
PERIOD_S = 1 / 20
#: Lines of reasoning to be seen while it grows.
REASONING_LINES = 4


class View(Protocol):
    """Where an answer, its tools and notes are shown."""

    def begin(self) -> None:
        """An answer is to come."""

    def show(self, event: AnswerEvent) -> None:
        """The next event of the answer."""

    def tick(self) -> None:
        """Nothing has happened for a moment."""

    def end(self) -> None:
        """There is no more of the answer. No harm if there was none."""

    def note(self, text: str) -> None:
        """Something about the conversation that is no part of it."""

    def print(self, what: RenderableType) -> None:
        """The answer to a command."""


class LiveView:
    """Streamed Markdown in a terminal.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._reset()

    def _reset(self) -> None:
        self._markdown = MarkdownStream()
        self._status = ""
        self._reasoning, self._reasoned_s = "", 0.0
        self._thinking_since: float | None = None
        self._calls: list[tuple[str, str]] = []  # name, JSON of the arguments so far
        self._whole: dict[int, str] = {}
        self._began, self._waited_s, self._drawn = perf_counter(), 0, 0.0
        self._changed = False

    def begin(self) -> None:
        self.end()
        self._reset()
        # Drawn when something has changed, not by the clock.
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="visible",  # Tail cuts at the other end
        )
        self._live.start()

    def show(self, event: AnswerEvent) -> None:
        final: list[RenderableType] = []
        if isinstance(event, Progress):
            self._status = _progress(event)
        elif isinstance(event, Reasoning):
            self._thinking_since = self._thinking_since or perf_counter()
            self._reasoning += printable(event.text)
        elif isinstance(event, Content):
            final = [*self._fold(), *self._markdown.push(printable(event.text))]
        elif isinstance(event, CallStart):
            final = self._fold()
            self._calls.append((event.name, ""))
        elif isinstance(event, CallArguments):
            name, before = self._calls[event.index]
            self._calls[event.index] = (name, before + event.fragment)
        elif isinstance(event, CallEnd):
            self._whole[event.index] = call_text(event.call.name, event.call.arguments)
        self._changed = True
        self._draw(final)

    def tick(self) -> None:
        waiting = perf_counter() - self._began
        if not self._changed and self._status and int(waiting) > self._waited_s:
            self._waited_s, self._changed = int(waiting), True
        if self._changed:
            self._draw([])

    def end(self) -> None:
        if self._live is None:
            return
        live, self._live = self._live, None
        live.update(Text())
        live.stop()
        rest = [*self._fold(), *self._markdown.finish()]
        if rest:
            self.console.print(Group(*rest))

    def note(self, text: str) -> None:
        self.console.print(_note(text))

    def print(self, what: RenderableType) -> None:
        self.console.print(what)

    def _fold(self) -> list[RenderableType]:
        """The reasoning has ended: one line is left of it."""
        if self._thinking_since is None:
            return []
        took = perf_counter() - self._thinking_since
        self._thinking_since = None
        return [_note(f"thought for {took:.1f} s (/reasoning shows it)")]

    def _draw(self, final: list[RenderableType]) -> None:
        """Draw what grows, below what is printed for good, in one piece."""
        if self._live is None:
            return
        now = perf_counter()
        if final:
            self._live.update(Tail(Group(*self._growing())))
            self.console.print(Group(*final))
        elif now - self._drawn >= PERIOD_S:
            self._live.update(Tail(Group(*self._growing())), refresh=True)
        else:
            return
        self._drawn, self._changed = now, False

    def _growing(self) -> list[RenderableType]:
        parts: list[RenderableType] = []
        if self._thinking_since is not None:
            width = self.console.width
            lines = Text(self._reasoning.strip("\n"), style="dim italic").wrap(self.console, width)
            parts += list(lines[-REASONING_LINES:])
        tail = self._markdown.tail
        if tail is not None:
            parts.append(tail)
        for index, (name, arguments) in enumerate(self._calls):
            shown = self._whole.get(index, f"{visible(name)}({visible(arguments)}")
            parts.append(Text(shown, style="cyan"))
        if not parts and self._status:
            waited = f", {self._waited_s} s" if self._waited_s else ""
            parts.append(_note(f"{self._status}{waited}"))
        return parts


class PlainView:
    """The text of answers as it is, for pipes and files; everything else on stderr.

    Args:
        out: where answers go; to a terminal without what it would obey.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._clean = printable if self._out.isatty() else str
        self._begun = False

    def begin(self) -> None:
        self._begun = False

    def show(self, event: AnswerEvent) -> None:
        if isinstance(event, Content):
            self._begun = True
            self._out.write(self._clean(event.text))
            self._out.flush()

    def end(self) -> None:
        if self._begun:
            self._out.write("\n")
            self._out.flush()
        self._begun = False

    def tick(self) -> None:
        pass

    def note(self, text: str) -> None:
        print(printable(text), file=self._err, flush=True)

    def print(self, what: RenderableType) -> None:
        console = Console(file=StringIO(), width=100, no_color=True, highlight=False)
        with console.capture() as captured:
            console.print(what)
        self._out.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())
        self._out.flush()


def _note(text: str) -> Text:
    return Text(printable(text), style="dim")


def _progress(event: Progress) -> str:
    if not event.total:
        return "waiting"
    kept = f", {event.cached} of them kept" if event.cached else ""
    return f"prompt: {event.done} of {event.total} tokens{kept}"
