"""Tool declarations and calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headgate.chat import ToolCall, load_tools, parse_tool_calls
from headgate.errors import UsageError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "on": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "range": {"type": "object"},
        "maybe": {"type": ["string", "null"]},
        "color": {"enum": ["red", "5"]},
    },
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]


def call(**values: str) -> str:
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", '{"a": 1}', '{"a": 1}'),
        ("text", "two\nlines\n", "two\nlines\n"),
        ("text", 'a "quote" \\ and </b> {brace}', 'a "quote" \\ and </b> {brace}'),
        ("text", "null", "null"),
        ("count", "5", 5),
        ("count", "many", "many"),
        ("share", "0.5", 0.5),
        ("on", "True", True),
        ("on", "false", False),
        ("tags", '["a", "b"]', ["a", "b"]),
        ("range", '{"low": 1}', {"low": 1}),
        ("maybe", "NULL", None),
        ("maybe", "x", "x"),
        ("color", "5", "5"),
        ("undeclared", "[1]", [1]),
        ("undeclared", "plain", "plain"),
    ],
)
def test_values_are_typed_by_their_schema(name: str, text: str, value: Any) -> None:
    assert parse_tool_calls(call(**{name: text}), TOOLS) == ("", [ToolCall("f", {name: value})])


def test_several_calls_behind_content() -> None:
    content, calls = parse_tool_calls(f"Here:\n\n{call(count='1')}\n{call(count='2')}", TOOLS)
    assert content == "Here:"
    assert [c.arguments for c in calls] == [{"count": 1}, {"count": 2}]


@pytest.mark.parametrize("cut", ["</tool_call>", "</function>\n</tool_call>", "</parameter>"])
def test_missing_closing_tags_are_forgiven(cut: str) -> None:
    text = call(count="7")
    assert parse_tool_calls(text[: text.index(cut)], TOOLS)[1] == [ToolCall("f", {"count": 7})]


def test_hermes_form() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"count": 3}}\n</tool_call>'
    assert parse_tool_calls(text) == ("", [ToolCall("f", {"count": 3})])


@pytest.mark.parametrize(
    "text", ["<tool_call>nonsense</tool_call>", "no call", '<tool_call>{"a":1}']
)
def test_what_is_no_call_stays_content(text: str) -> None:
    assert parse_tool_calls(text) == (text, [])


def test_tools_file_may_hold_bare_functions(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([TOOLS[0]["function"], TOOLS[0]]))
    assert load_tools(path) == [TOOLS[0], TOOLS[0]]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "cannot read"),
        ("{", "not valid JSON"),
        ("[" * 100000, "not valid JSON"),
        ("{}", "list of functions"),
        ("[]", "list of functions"),
        ("[5]", "function 1 has no name"),
        ('[{"name": "f", "parameters": 5}]', "parameters of f"),
        ('[{"name": "f", "parameters": {"properties": []}}]', "parameters of f"),
    ],
)
def test_unusable_tools_files(tmp_path: Path, content: str | None, match: str) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=match):
        load_tools(path)
