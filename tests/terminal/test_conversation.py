"""The conversation as data, and its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headgate.chat import ToolCall
from headgate.errors import UsageError
from headgate.terminal.conversation import NOT_RUN, Conversation, read_messages

USER = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_what_the_page_exports_and_plain_lists_load(tmp_path: Path) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "reasoning_content": "so", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    path = tmp_path / "chat.json"
    for stored in (messages, {"model": "demo", "temperature": 0.5, "messages": messages}):
        path.write_text(json.dumps(stored))
        conversation = Conversation("other")
        conversation.load(path)
        assert conversation.system == "Be brief."
        assert conversation.messages == [{"role": "user", "content": "ab"}, *messages[2:]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not a JSON file"),
        ("\xff", "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("3", "holds no list of messages"),
        ('{"messages": {}}', "holds no list of messages"),
        ("[3]", "message 1: it has no role"),
        ('[{"role": "robot", "content": ""}]', "role 'robot'"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', "message 1: .*image_url"),
        (json.dumps([{"role": "tool", "tool_call_id": "x", "content": ""}]), "answers no call"),
        (json.dumps([{"role": "assistant", "tool_calls": [CALL]}, USER]), "has no result"),
        ('[{"role": "assistant", "tool_calls": 3}]', "tool_calls are not a list"),
        (
            '[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "["}]}]',
            "not valid JSON",
        ),
    ],
)
def test_bad_files_give_one_line_and_change_nothing(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(text.encode("latin-1"))
    conversation = Conversation("system")
    conversation.ask("question")
    with pytest.raises(UsageError, match=complaint) as caught:
        conversation.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert conversation.system == "system" and len(conversation.messages) == 1


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="cannot read"):
            read_messages(path)


def test_any_text_survives_a_file(tmp_path: Path) -> None:
    conversation, path = Conversation(), tmp_path / "chat.json"
    conversation.ask('quotes " \\ \n tabs \t grüße 日本 \u2028 \x1b[31m')
    conversation.answer("é", "", [ToolCall("f", {"x": "日本"})])
    conversation.close_calls()
    conversation.save(path)
    again = Conversation()
    again.load(path)
    assert again.messages == conversation.messages


def test_calls_are_closed_once() -> None:
    conversation = Conversation()
    conversation.ask("q")
    ids = conversation.answer("", "", [ToolCall("f", {}), ToolCall("g", {})])
    conversation.result(ids[0], "done")
    for _ in range(2):
        conversation.close_calls()
    assert [m["content"] for m in conversation.messages[2:]] == ["done", NOT_RUN]


def test_a_file_that_ends_in_a_call_can_go_on(tmp_path: Path) -> None:
    path, conversation = tmp_path / "chat.json", Conversation()
    path.write_text(json.dumps([USER, {"role": "assistant", "tool_calls": [CALL]}]))
    conversation.load(path)
    assert conversation.messages[-1] == {"role": "tool", "tool_call_id": "c1", "content": NOT_RUN}


def test_a_dropped_question_can_be_asked_again_or_forgotten() -> None:
    conversation = Conversation()
    conversation.ask("q")
    conversation.drop_unanswered()
    assert conversation.messages == [] and conversation.rewind()
    assert conversation.messages == [{"role": "user", "content": "q"}]
    conversation.drop_unanswered()
    assert conversation.undo() == "q" and not conversation.rewind()
