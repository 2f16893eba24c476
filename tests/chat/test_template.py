"""Messages as clients send them, and templates of the wild."""

from __future__ import annotations

from typing import Any

import pytest

from headgate.chat import ChatTemplate, Tokenizer, normal_messages, opens_thinking
from headgate.demo import CHECKPOINT
from headgate.errors import UsageError

ECHO = "{% for m in messages %}[{{ m.role }}|{{ m.content }}|{{ m.reasoning_content }}]{% endfor %}"
USER = {"role": "user", "content": "hi"}


def demo_template() -> ChatTemplate:
    found = ChatTemplate.from_files(
        {"chat_template.jinja": (CHECKPOINT / "chat_template.jinja").read_bytes()}
    )
    assert found is not None
    return found


def test_text_parts_are_joined_and_nothing_is_empty() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    assert (
        ChatTemplate(ECHO).render(
            [{"role": "user", "content": parts}, {"role": "assistant", "content": None}]
        )
        == "[user|abc|][assistant||]"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "image_url", "image_url": {}}], "type image_url is not supported"),
        ([5], "type int is not supported"),
        (5, "neither text nor"),
    ],
)
def test_other_content_is_refused_by_message(content: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"message 2: .*{reason}"):
        normal_messages([USER, {"role": "user", "content": content}])


def test_developer_becomes_system_unless_the_template_knows_it() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        USER,
        {"role": "developer", "content": "c"},
    ]
    assert ChatTemplate(ECHO).render(messages) == "[system|a\n\nb|][user|hi|][system|c|]"
    knows = ChatTemplate("{# developer #}" + ECHO).render(messages)
    assert knows == "[system|a|][developer|b|][user|hi|][developer|c|]"


def test_reasoning_is_read_under_both_names() -> None:
    for name in ("reasoning", "reasoning_content"):
        text = demo_template().render([USER, {"role": "assistant", "content": "x", name: "why"}])
        assert "<think>\nwhy\n</think>\n\nx" in text


def test_tool_messages_get_the_name_of_their_call() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": "é"}'}}
    messages: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "5"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "6"},
    ]
    found = normal_messages(messages)
    assert found[1]["tool_calls"] == [
        {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {"a": "é"}}}
    ]
    assert found[2]["name"] == "f" and "name" not in found[3]
    text = demo_template().render(messages)
    assert "<parameter=a>\né\n</parameter>" in text and "<tool_response>\n5\n" in text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "x"}, "no role"),
        ("text", "no role"),
        ({"role": "assistant", "tool_calls": "x"}, "not a list"),
        ({"role": "assistant", "tool_calls": [5]}, "no function name"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "no function name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]},
            "not a JSON object",
        ),
    ],
)
def test_malformed_messages_are_refused(message: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=f"message 1: .*{reason}"):
        normal_messages([message])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ messages[0].content[9] + 1 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ range(10000000) }}",
        "{{ 'x' | indent(width=none + 1) }}",
        "{{ messages | tojson(indent='x' * 3, nonsense=1) }}",
    ],
)
def test_whatever_a_template_does_wrong_is_typed(source: str) -> None:
    with pytest.raises(UsageError, match="chat template refuses"):
        ChatTemplate(source).render([USER])


def test_generation_blocks_render_their_text_in_a_scope_of_their_own() -> None:
    source = (
        "{% set x = 1 %}{%- for m in messages -%}\n"
        "{%- generation -%}{% set x = 2 %}{{ m.content }}{{ x }}{%- endgeneration -%}\n"
        "{%- endfor -%}{{ x }}"
    )
    assert ChatTemplate(source).render([USER]) == "hi21"
    with pytest.raises(UsageError, match="cannot be parsed"):
        ChatTemplate("{% generation %}")


def test_tojson_takes_the_arguments_that_hugging_face_gives_it() -> None:
    source = "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}"
    assert ChatTemplate(source).render([USER]) == '{"content":"hi","role":"user"}'


def test_generation_prompt_says_whether_the_answer_begins_with_reasoning() -> None:
    template = demo_template()
    assert opens_thinking(template.render([USER], enable_thinking=True))
    assert not opens_thinking(template.render([USER], enable_thinking=False))
    quoting = {"role": "user", "content": "what is <think>"}
    assert not opens_thinking(template.render([quoting]))
    assert opens_thinking("<|im_start|>assistant\n<think>") and not opens_thinking("")


def test_thinking_ids() -> None:
    data = (CHECKPOINT / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_bytes(data)
    assert tokenizer.thinking_ids() == tuple(map(tokenizer.id_of, ("<think>", "</think>")))
    other = Tokenizer.from_bytes(data.replace(b"<think>", b"<thonk>"))
    assert other.thinking_ids() is None
