"""The answer parser: the same events however the text is cut, and nothing lost."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.chat import (
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    OutputParser,
    Reasoning,
    ToolCall,
    parse_tool_calls,
)

PROPERTIES: dict[str, Any] = {
    "text": {"type": "string"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "count": {"type": "integer"},
    "tags": {"type": "array", "items": {"type": "string"}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"properties": PROPERTIES}}}
    for name in ("f", "write")
]

# Text that is made to be taken for something else.
PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<tool_call>\n",
    "\n</tool_call>",
    "<function=f>",
    "\n<function=write>\n",
    "<function=unknown>",
    "</function>",
    "\n</function>\n",
    "<parameter=text>",
    "\n<parameter=maybe>\n",
    "<parameter=count>",
    "<parameter=tags>\n",
    "<parameter=other>",
    "</parameter>",
    "\n</parameter>\n",
    "<think>",
    "</think>",
    '{"name": "f", "arguments": {"text": "',
    '"}}',
    "[1, ",
    "null",
    "NULL",
    "True",
    "NaN",
    "1e999",
    "\n",
    " ",
    "\n\n  ",
    '"',
    "\\",
    "{",
    "}",
    "<",
    ">",
    "</",
    "é🦊",
    "\u2028",
    "\x00",
]
WELL_FORMED = (
    "<tool_call>\n<function=f>\n<parameter=text>\n{}\n</parameter>\n"
    "<parameter=count>\n{}\n</parameter>\n</function>\n</tool_call>"
)


@st.composite
def answers(draw: st.DrawFn) -> str:
    """Text of hostile pieces, with words that occur once each."""
    pieces = st.one_of(st.sampled_from(PIECES), st.text(max_size=4), st.just("WORD"))
    parts = draw(st.lists(pieces, max_size=25))
    if draw(st.booleans()):
        call = WELL_FORMED.format(draw(st.sampled_from(PIECES)), draw(st.sampled_from(PIECES)))
        parts.insert(draw(st.integers(0, len(parts))), call)
    return "".join(f"w{n}w" if part == "WORD" else part for n, part in enumerate(parts))


def parse(pieces: list[str], thinking: bool) -> list[Event]:
    """Events of a text in pieces, neighbours of one kind joined."""
    parser = OutputParser(TOOLS, thinking=thinking)
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    assert parser.finish() == []
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, (Reasoning, Content)) and type(last) is type(event):
            assert isinstance(last, (Reasoning, Content))
            joined[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            joined[-1] = CallArguments(event.index, last.fragment + event.fragment)
        else:
            joined.append(event)
    return joined


@settings(max_examples=100, deadline=None)
@given(answers(), st.booleans(), st.data())
def test_any_split_gives_the_same_events(text: str, thinking: bool, data: st.DataObject) -> None:
    whole = parse([text], thinking)
    assert parse(list(text), thinking) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    bounds = [0, *cuts, len(text)]
    assert parse([text[a:b] for a, b in itertools.pairwise(bounds)], thinking) == whole


@settings(max_examples=100, deadline=None)
@given(answers(), st.booleans())
def test_fragments_are_the_arguments(text: str, thinking: bool) -> None:
    index = 0
    events = parse([text], thinking)
    for at, event in enumerate(events):
        if isinstance(event, CallEnd):
            start, fragments = events[at - 2], events[at - 1]
            assert start == CallStart(index, event.call.name)
            assert isinstance(fragments, CallArguments) and fragments.index == index
            found = json.loads(fragments.fragment, parse_constant=pytest.fail)
            assert found == event.call.arguments
            index += 1
    assert sum(isinstance(event, CallStart) for event in events) == index


@settings(max_examples=100, deadline=None)
@given(answers(), st.booleans())
def test_nothing_is_lost(text: str, thinking: bool) -> None:
    events = parse([text], thinking)
    shown = "".join(
        event.text
        if isinstance(event, (Reasoning, Content))
        else json.dumps([event.call.name, event.call.arguments], ensure_ascii=False)
        for event in events
        if isinstance(event, (Reasoning, Content, CallEnd))
    )
    # A name that the text ends in, behind a closed parameter, was never complete.
    kept = re.sub(r"</parameter>\s*<parameter=[^>\n]*\Z", "", text)
    for word in re.findall(r"w\d+w", kept):
        assert word in shown


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"])), st.booleans())
def test_text_without_tags_is_content(text: str, thinking: bool) -> None:
    kind = Reasoning if thinking else Content
    assert parse([text], thinking) == ([kind(text.strip())] if text.strip() else [])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([p for p in PIECES if not p.endswith("</parameter>\n")])))
def test_string_values_may_hold_markup(pieces: list[str]) -> None:
    """Everything that is not a closed parameter before a tag is the value's text, unless it
    looks like a forgotten closing tag."""
    value = "".join(pieces)
    forgotten = r"(^|\n)(<parameter=count>|</function>\s*</tool_call>)"
    closing = r"</parameter>\s*(<parameter=(count|maybe|tags|other)>|</function>|</tool_call>)"
    if re.search(forgotten, value) or re.search(closing, value + "\n"):
        return
    if re.search(r"(^|\n)<parameter=(maybe|tags)>", value) or value.rstrip().endswith(
        ("</parameter>", "</function>")
    ):
        return
    _, calls = parse_tool_calls(WELL_FORMED.format(value, 7), TOOLS)
    assert calls == [ToolCall("f", {"text": value, "count": 7})]


def test_strings_stream_as_they_arrive() -> None:
    parser = OutputParser(TOOLS)
    parser.push("<tool_call>\n<function=f>\n<parameter=text>\n")
    assert parser.push('say "hi"') == [CallArguments(0, 'say \\"hi\\"')]
    assert parser.push(" <b") == [CallArguments(0, " <b")]
    assert parser.push(" </para") == [CallArguments(0, " ")]
    assert parser.push("graph") == [CallArguments(0, "</paragraph")]
    assert parser.push("\n</parameter>\n</func") == []
    assert parser.push("tion>") == [
        CallArguments(0, '"'),
        CallArguments(0, "}"),
        CallEnd(0, ToolCall("f", {"text": 'say "hi" <b </paragraph'})),
    ]


def test_nullable_strings_stream_once_they_cannot_be_null() -> None:
    parser = OutputParser(TOOLS)
    parser.push("<tool_call><function=f><parameter=maybe>")
    assert parser.push("Nul") == []
    assert parser.push("ls") == [CallArguments(0, '"Nulls')]
    text = "<tool_call><function=f><parameter=maybe>\nnull\n</parameter></function></tool_call>"
    assert parse_tool_calls(text, TOOLS) == ("", [ToolCall("f", {"maybe": None})])


def test_reasoning_content_and_calls_are_trimmed_and_apart() -> None:
    text = "\n I think \n</think>\n\nFirst\n\n" + WELL_FORMED.format("a", 1) + "\n  Last\n"
    assert [e for e in parse([text], True) if not isinstance(e, CallArguments)] == [
        Reasoning("I think"),
        Content("First"),
        CallStart(0, "f"),
        CallEnd(0, ToolCall("f", {"text": "a", "count": 1})),
        Content("\n\n\n  Last"),
    ]


@pytest.mark.parametrize("thinking", [False, True])
def test_a_leading_think_tag_opens_reasoning(thinking: bool) -> None:
    found = parse(["\n<think>\nhm <think>\n</think>\n\nyes </think>"], thinking)
    assert found == [Reasoning("hm <think>"), Content("yes </think>")]


def test_a_call_ends_reasoning_only_on_its_own_line_and_if_declared() -> None:
    call = WELL_FORMED.format("a", 1)
    inside = [type(event) for event in parse([f"so I call\n{call}"], True)]
    assert inside == [Reasoning, CallStart, CallArguments, CallEnd]
    for musing in (f"as in {call}", "\n<tool_call>\n<function=g>\n</function>", "\n<tool_call>?"):
        assert [type(event) for event in parse([musing], True)] == [Reasoning]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        # every kind of forgotten tag
        ("<tool_call><function=f><parameter=count>\n1\n<parameter=text>\nx\n</function>\n"
         "</tool_call>", {"count": 1, "text": "x"}),
        ("<function=f>\n<parameter=count>\n1\n</parameter>\n</function>\n</tool_call>",
         {"count": 1}),
        ("<tool_call><function=f><parameter=count>1</parameter></tool_call>", {"count": 1}),
        ("<tool_call><function=f></function>", {}),
        ("<tool_call><function=f>", {}),
        # a parameter that has its value does not begin again
        ("<tool_call><function=f><parameter=text>a</parameter><parameter=text>b</parameter>"
         "</function>", {"text": "a</parameter><parameter=text>b"}),
    ],
)  # fmt: skip
def test_forgotten_tags(text: str, arguments: dict[str, Any]) -> None:
    assert parse_tool_calls(text, TOOLS) == ("", [ToolCall("f", arguments)])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call><function=>x</function></tool_call>",
        "<tool_call><function=f>words<parameter=text>x</parameter></function></tool_call>",
        "<tool_call><function=f><parameter=te\nxt>x</parameter></function></tool_call>",
        "<function=undeclared></function>",
        "see <function=f></function>",
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>',
        "<tool_call>" + '{"a":' * 5000 + "</tool_call>",
    ],
)
def test_malformed_calls_are_content(text: str) -> None:
    assert parse_tool_calls(text, TOOLS) == (text, [])


def test_a_call_is_found_behind_a_malformed_one() -> None:
    content, calls = parse_tool_calls('<tool_call>{"broken\n' + WELL_FORMED.format("a", 1), TOOLS)
    assert content == '<tool_call>{"broken' and calls == [ToolCall("f", {"text": "a", "count": 1})]


def test_hermes_strings_may_hold_the_closing_tag() -> None:
    arguments = {"text": 'a </tool_call> "b" {'}
    text = f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>!"
    assert parse_tool_calls(text) == ("!", [ToolCall("f", arguments)])


ROOT: dict[str, Any] = {
    "$defs": {
        "Size": {"type": "integer"},
        "Loop": {"$ref": "#/$defs/Loop"},
        "Color": {"enum": ["red", 5, None]},
    },
    "properties": {
        "size": {"$ref": "#/$defs/Size", "description": "how large"},
        "old": {"allOf": [{"$ref": "#/$defs/Size"}]},
        "loop": {"$ref": "#/$defs/Loop"},
        "color": {"$ref": "#/$defs/Color"},
        "either": {"oneOf": [{"type": "string"}, {"type": "array"}]},
        "number": {"type": "number"},
        "nothing": {"type": "null"},
        "const": {"const": 3},
        "flag": {"type": ["boolean", "string"]},
        "object": {"properties": {}},
        "any": True,
    },
}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("size", "5", 5),
        ("size", "5.0", 5),
        ("size", "5.5", "5.5"),
        ("size", "true", "true"),
        ("old", " 5 ", 5),
        ("loop", "[1]", [1]),
        ("color", "5", 5),
        ("color", "red", "red"),
        ("color", "null", None),
        ("either", '["a"]', ["a"]),
        ("either", '"a"', '"a"'),
        ("either", "5", "5"),
        ("number", "5", 5),
        ("number", "1e999", "1e999"),
        ("number", "NaN", "NaN"),
        ("number", "9" * 5000, "9" * 5000),
        ("nothing", "None", "None"),
        ("nothing", "null", None),
        ("const", "3", 3),
        ("flag", "TRUE", True),
        ("flag", "yes", "yes"),
        ("object", '{"a": 1}', {"a": 1}),
        ("object", "[1]", "[1]"),
        ("any", '{"a": "\\ud800"}', {"a": "\ud800"}),
        ("any", "[" * 100000, "[" * 100000),
    ],
)
def test_types_come_from_the_schema(name: str, text: str, value: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": ROOT}}]
    call = f"<tool_call><function=f><parameter={name}>{text}</parameter></function></tool_call>"
    parser = OutputParser(tools)
    events = parser.push(call) + parser.finish()
    found = events[-1]
    assert isinstance(found, CallEnd) and found.call.arguments == {name: value}
    assert type(found.call.arguments[name]) is type(value)
    "".join(e.fragment for e in events if isinstance(e, CallArguments)).encode("utf-8")
