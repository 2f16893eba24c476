"""Markdown that is shown while it arrives.

What cannot change any more is printed once, for good, into the terminal's scrollback; only
the block that still grows is drawn again. So an answer may be longer than the screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, ClassVar, cast

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich import markdown
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

#: The terminal's own sixteen colours, on its own background.
THEME = "ansi_dark"

_LISTS = ("bullet_list_open", "ordered_list_open")


def _parser() -> MarkdownIt:
    # Without html, of which nothing would be shown: it is text here.
    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


class _Heading(markdown.Heading):
    """A heading at the left, where the text is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.justify = "left"
        yield text


class _Item(markdown.ListItem):
    """An item whose number has room for two digits, as it may be shown before the others."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        return super().render_number(console, options, number, max(last_number - 1, 10))


class MarkdownBlock(markdown.Markdown):
    """Markdown source as rich shows it, of which nothing is left out.

    Args:
        source: of one or more blocks.
        env: link references that are known.
    """

    elements: ClassVar = {
        **markdown.Markdown.elements,
        "heading_open": _Heading,
        "list_item_open": _Item,
    }

    def __init__(self, source: str, env: dict[str, Any] | None = None) -> None:
        # Link targets are shown, so that a text cannot claim to lead elsewhere.
        super().__init__(source, code_theme=THEME, hyperlinks=False)
        self.parsed = _parser().parse(source, {} if env is None else env)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Without blank lines around it, and without spaces at the ends of lines."""
        segments = cast(Iterable[Segment], super().__rich_console__(console, options))
        lines = list(Segment.split_lines(segments))
        while lines and not _has_text(lines[-1]):
            lines.pop()
        for line in dropwhile(lambda line: not _has_text(line), lines):
            yield from _stripped(line)
            yield Segment.line()


def _stripped(line: list[Segment]) -> list[Segment]:
    kept = list(line)
    while kept and not kept[-1].text.strip(" "):
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(" "), kept[-1].style)
    return kept


def _has_text(line: Iterable[Segment]) -> bool:
    return any(segment.text.strip() for segment in line)


@dataclass(frozen=True)
class Code:
    """Lines of a code block; all of it is known to colour them.

    Attributes:
        text: of the block so far.
        first, last: lines to show, from 1.
    """

    text: str
    language: str
    first: int
    last: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        syntax = Syntax(self.text, self.language or "text", theme=THEME, background_color="default")
        lines = syntax.highlight(self.text).split("\n", allow_blank=True)
        for line in lines[self.first - 1 : self.last]:
            line.expand_tabs(4)
            yield line


class Tail:
    """The last lines of something, as many as fit on the screen."""

    def __init__(self, what: RenderableType) -> None:
        self._what = what

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._what, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 2) :]:
            yield from line
            yield Segment.line()


@dataclass(frozen=True)
class _Unit:
    """A top-level block, or an item of a top-level list.

    Attributes:
        start: its first line.
        gap: a blank line is before it.
        fence: of a code block.
    """

    start: int
    gap: bool
    fence: Token | None = None


class MarkdownStream:
    """Markdown that grows.

    Attributes:
        printed: source of what has been returned as final.
    """

    def __init__(self) -> None:
        self.printed = ""
        self._text = ""  # what is not final, from the beginning of a unit
        self._env: dict[str, Any] = {}
        self._any = False  # something is above
        self._gap = True  # of the unit at the beginning of the text
        self._code_lines = -1  # of the code block at the beginning of the text, shown; -1: none

    def push(self, text: str) -> list[RenderableType]:
        """What has become final."""
        self._text += text
        if "\n" not in text:
            return []
        # Only whole lines tell what they are: `#` may become a heading or a word.
        return list(self._settle(self._text[: self._text.rfind("\n") + 1]))

    def finish(self) -> list[RenderableType]:
        """All the rest."""
        found = list(self._settle(self._text))
        if self._text.strip():
            found += self._close(self._text)
        self.printed += self._text
        self._text = ""
        return found

    @property
    def tail(self) -> RenderableType | None:
        """What is not final yet, as it would look."""
        if not self._text.strip():
            return None
        units = self._units(self._text)
        blank = [Text()] if self._any and self._gap and self._code_lines < 0 else []
        if units and units[0].fence is not None:
            fence = units[0].fence
            lines = self._text.split("\n")
            rest = "\n".join(lines[units[1].start :]) if len(units) > 1 else ""
            after = [Text("```\n", style="dim"), MarkdownBlock(rest, dict(self._env))]
            code = self._code(fence, len(fence.content.removesuffix("\n").split("\n")))
            return Group(*blank, *code, *(after if rest else ()))
        return Group(*blank, MarkdownBlock(self._text, dict(self._env)))

    def _settle(self, whole: str) -> Iterator[RenderableType]:
        """Of this beginning of the text, all units but the last are final."""
        units = self._units(whole)
        lines, done = [f"{line}\n" for line in whole.split("\n")[:-1]], 0
        for after in units[1:]:
            source, done = "".join(lines[done : after.start]), after.start
            yield from self._close(source)
            self.printed += source
            self._text = self._text[len(source) :]
            self._gap = after.gap
        if units and units[-1].fence is not None:
            yield from self._grow(units[-1].fence)

    def _grow(self, fence: Token) -> Iterator[RenderableType]:
        """Whole lines of a code block are final before the block is."""
        count = fence.content.count("\n")
        if self._code_lines < 0 and self._any:
            yield Text()
        yield from self._code(fence, count)
        self._code_lines, self._any = count, True

    def _close(self, source: str) -> Iterator[RenderableType]:
        """A unit that has ended."""
        units = self._units(source)
        if not units:  # nothing but link references
            _parser().parse(source, self._env)
            return
        if self._any and self._gap and self._code_lines < 0:
            yield Text()
        fence = units[0].fence
        if fence is not None:
            content = fence.content.removesuffix("\n")
            yield from self._code(fence, content.count("\n") + 1 if content else 0)
            yield Text("```", style="dim")
        else:
            yield MarkdownBlock(source, self._env)
        self._any, self._code_lines = True, -1

    def _code(self, fence: Token, count: int) -> list[RenderableType]:
        """Lines of the code block up to ``count`` that have not been shown."""
        shown: list[RenderableType] = []
        language = (fence.info.split() or [""])[0]
        if self._code_lines < 0:
            shown.append(Text(f"```{fence.info.strip()}", style="dim"))
        first = max(0, self._code_lines) + 1
        if count >= first:
            shown.append(Code(fence.content, language, first, count))
        return shown

    def _units(self, source: str) -> list[_Unit]:
        """The units of a source, by where they start."""
        found: list[_Unit] = []
        fresh = False  # a list has begun of which no item has been seen
        for token in _parser().parse(source, dict(self._env)):
            if token.map is None or token.nesting < 0:
                continue
            gap = True if found else self._gap
            if token.type in _LISTS and token.level == 0:
                fresh = True
            elif token.level == 0:
                fence = token if token.type == "fence" else None
                found.append(_Unit(token.map[0], gap, fence))
            elif token.type == "list_item_open" and token.level == 1:
                found.append(_Unit(token.map[0], gap and (fresh or not found)))
                fresh = False
        return found
