"""Markdown that grows: nothing lost, nothing shown twice, whatever the pieces."""

from __future__ import annotations

import re
from io import StringIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from headgate.chat import CallArguments, CallStart, Content, Reasoning
from headgate.terminal.markdown import MarkdownBlock, MarkdownStream
from headgate.terminal.view import LiveView

DOCUMENT = """# Heading

Text with **bold** and `code`, a [link](https://example.org) and <b>html</b>.

1. first
2. second

   more of it
3. third

- a
  - nested
- b

```python
def f(x):

    return x
```

| a | b |
|---|---|
| 1 | 2 |

> quote

Title
-----
The [end].

[end]: https://example.org/end
"""

#: Pieces that mean something in Markdown.
PIECES = st.lists(
    st.sampled_from(
        ["q", "b c", "\n", "\n\n", "#", " ", "- ", "1. ", "```", "    ", "> ", "---", "|", "**",
         "~~~", "\t", "[x]", "[x]: y", "<p>", "\u2028", "&amp;", "\\"]
    ),
    max_size=40,
)  # fmt: skip


def plain(parts: list[RenderableType], width: int = 80, height: int = 25) -> str:
    console = Console(file=StringIO(), width=width, height=height)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    return "\n".join(line.rstrip(" ") for line in captured.get().split("\n"))


def streamed(pieces: list[str]) -> tuple[MarkdownStream, list[RenderableType]]:
    stream, parts = MarkdownStream(), []
    for piece in pieces:
        parts += stream.push(piece)
        plain([stream.tail or ""])  # any beginning can be shown
    return stream, parts + stream.finish()


@pytest.mark.parametrize("size", [1, 2, 7, 50, 10_000])
def test_pieces_of_any_size_look_the_same(size: int) -> None:
    pieces = [DOCUMENT[i : i + size] for i in range(0, len(DOCUMENT), size)]
    stream, parts = streamed(pieces)
    assert stream.printed == DOCUMENT
    whole, once = streamed([DOCUMENT])
    assert plain(parts) == plain(once) and whole.printed == DOCUMENT


def test_all_of_a_document_is_shown_html_and_link_targets_too() -> None:
    _, parts = streamed(list(DOCUMENT))
    shown = plain(parts, width=100)
    for text in (
        *("Heading", "https://example.org)", "<b>html</b>", " 2 second", "more of it"),
        *(" 3 third", "nested", "def f(x):", "    return x", "▌ quote", "Title"),
    ):
        assert shown.count(text) == 1, text
    assert shown.count("```") == 2 and "\n\n\n" not in shown


@given(PIECES)
@example(["- q\n", "- ", "q\n", "q\n\n", "q"])
@example(["```\n", "\n", "\n", "```\n", "q"])
@example(["[x]: y\n\n", "q [x]\n\n", "q"])
def test_what_is_final_is_the_source_in_order_once(pieces: list[str]) -> None:
    text = "".join(pieces)
    stream, parts = streamed(pieces)
    assert stream.printed == text
    shown = plain(parts, width=1000).count("q")
    assert shown <= text.count("q")
    # Tables drop what has no column; the word behind a fence is a language.
    dropped = any(mark in text for mark in ("|", "~~~", "```"))
    assert shown == text.count("q") or dropped


def test_whole_lines_of_code_are_final_before_the_block_is() -> None:
    stream = MarkdownStream()
    parts = stream.push("```python\nx = 1\n\ny = ")
    assert plain(parts).splitlines() == ["```python", "x = 1", ""]
    assert plain([stream.tail or ""]).split("\n")[0] == "y ="
    parts = [*stream.push("2\n```\nafter"), *stream.finish()]
    assert plain(parts).splitlines() == ["y = 2", "```", "", "after"]


def test_a_list_is_final_item_by_item_and_keeps_its_numbers() -> None:
    stream = MarkdownStream()
    assert plain(stream.push("7. seven\n8. eight\n9. ni")) == "  7 seven\n"
    assert plain(stream.finish()) == "  8 eight\n  9 ni\n"


def test_what_may_still_change_is_not_final() -> None:
    for text in ("para\n", "a | b\n", "# not yet", "- item\n", "> quote\n"):
        assert MarkdownStream().push(text) == []


class Terminal:
    """The rows of a terminal that gets rich's output: as much of ECMA-48 as that has."""

    def __init__(self, text: str) -> None:
        self.rows, self.at = [""], 0
        for mark, code, plain_text in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|([^\x1b]+)", text):
            if plain_text:
                self._write(plain_text)
            elif code == "A":
                self.at -= int(mark or 1)
                assert self.at >= 0
            elif code == "K":
                self.rows[self.at] = ""

    def _write(self, text: str) -> None:
        for character in text:
            if character == "\n":
                self.at += 1
                self.rows += [""] * (self.at == len(self.rows))
            elif character == "\r":
                self.column = 0
            else:
                self.rows[self.at] += character


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 4)])
def test_a_screen_ends_with_the_whole_answer_once(width: int, height: int) -> None:
    document = (
        DOCUMENT
        + "\n```\n"
        + "".join(f"line {i}\n" for i in range(60))
        + "```\n"
        + ("\n" + "words " * 300)
    )
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, color_system=None)
    view = LiveView(console)
    view.begin()
    view.show(Reasoning("so far " * 200))
    for i in range(0, len(document), 17):
        view.show(Content(document[i : i + 17]))
        view._drawn = 0.0  # draw every time
    view.show(CallStart(0, "f"))
    view.show(CallArguments(0, '{"x": "\x1b[2J'))
    view.end()
    _, parts = streamed([document])
    rows = "\n".join(row.rstrip() for row in Terminal(out.getvalue()).rows)
    note, _, answer = rows.partition("it)\n")
    assert note.startswith("thought for")
    expected = "\n".join(row.rstrip() for row in plain(parts, width, height).split("\n"))
    assert answer.rstrip() == expected.rstrip()
    assert "\x1b[2J" not in out.getvalue()


def test_what_grows_is_never_taller_than_the_screen() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=20, height=6, color_system=None)
    view = LiveView(console)
    view.begin()
    view.show(Content("word " * 200))
    assert "word" in out.getvalue() and out.getvalue().count("\n") < 6
    view.end()


def test_a_block_has_no_blank_lines_around_it() -> None:
    for source in ("# a", "- a\n- b", "> a", "| a |\n|---|\n| 1 |", "```\nx\n```", "a"):
        shown = plain([MarkdownBlock(source)])
        assert shown.strip() and shown.splitlines()[0].strip() and shown.splitlines()[-1].strip()
