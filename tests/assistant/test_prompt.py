"""From messages to token ids."""

from __future__ import annotations

from typing import Any

import pytest

from headgate.assistant import ChatRequest
from headgate.assistant.prompt import PromptBuilder
from headgate.chat import ChatTemplate, Tokenizer
from headgate.errors import InvalidRequest
from headgate.store import Store
from tests.conftest import DemoStore

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}}
SYSTEM = {"role": "system", "content": "Answer in one word. Never say more than that."}


@pytest.fixture(scope="module")
def tokenizer(demo_store: DemoStore) -> Tokenizer:
    return Tokenizer.from_bytes(Store.open(demo_store()).read_file("tokenizer.json"))


@pytest.fixture(scope="module")
def builder(demo_store: DemoStore, tokenizer: Tokenizer) -> PromptBuilder:
    source = Store.open(demo_store()).read_file("chat_template.jinja")
    template = ChatTemplate.from_files({"chat_template.jinja": source})
    assert template is not None
    return PromptBuilder(template, tokenizer)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calls(arguments: object) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def test_system_and_developer_messages_become_one_at_the_front(
    builder: PromptBuilder, tokenizer: Tokenizer
) -> None:
    scattered = [user("Hi"), {"role": "developer", "content": "Two."}, user("Ho")]
    together = [{"role": "system", "content": "One.\n\nTwo."}, user("Hi"), user("Ho")]
    first = builder.build(ChatRequest([{"role": "system", "content": "One."}, *scattered]))
    assert first.ids == builder.build(ChatRequest(together)).ids


def test_arguments_may_be_an_object_or_its_json(builder: PromptBuilder) -> None:
    forms = [{"x": "1"}, '{"x": "1"}']
    one, two = (builder.build(ChatRequest([user("Hi"), calls(form)])).ids for form in forms)
    assert one == two


@pytest.mark.parametrize("arguments", ["{", "[1]", "[" * 100_000, 3, None])
def test_unusable_arguments_are_named(builder: PromptBuilder, arguments: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        builder.build(ChatRequest([user("Hi"), calls(arguments)]))
    assert caught.value.field == "messages[1].tool_calls[0].function.arguments"


def test_boundaries_are_where_other_prompts_part(
    builder: PromptBuilder, tokenizer: Tokenizer
) -> None:
    asked = ChatRequest(
        [SYSTEM, user("One?"), {"role": "assistant", "content": "1"}, user("Two?")], [TOOL]
    )
    prompt = builder.build(asked)
    texts = [tokenizer.decode(prompt.ids[:at]) for at in prompt.boundaries]
    assert texts[0].endswith("that.<|im_end|>\n<|im_start|>user\n")
    assert texts[1].endswith("1<|im_end|>\n<|im_start|>user\n")
    assert texts[2].endswith("Two?<|im_end|>\n")
    # Another conversation with the same system message and tools shares the first.
    other = builder.build(ChatRequest([SYSTEM, user("Other?")], [TOOL]))
    assert other.ids[: prompt.boundaries[0]] == prompt.ids[: prompt.boundaries[0]]
    # The next turn of this one shares all of it.
    more = [*asked.messages, {"role": "assistant", "content": "2"}, user("Three?")]
    longer = builder.build(ChatRequest(more, [TOOL]))
    assert longer.ids[: prompt.boundaries[2]] == prompt.ids[: prompt.boundaries[2]]


def test_thinking_is_what_the_template_makes_of_it(builder: PromptBuilder) -> None:
    for thinking in (True, False):
        assert builder.build(ChatRequest([user("Hi")], thinking=thinking)).thinking is thinking
    # The demo's template does not reason unless asked to.
    assert builder.build(ChatRequest([user("Hi")])).thinking is False


def test_tools_are_not_shown_where_none_may_be_called(builder: PromptBuilder) -> None:
    without = builder.build(ChatRequest([user("Hi")])).ids
    assert builder.build(ChatRequest([user("Hi")], [TOOL], "none")).ids == without


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (ChatRequest([{"role": "tyrant", "content": "Hi"}]), "messages"),
        (ChatRequest([user("\ud800")]), "messages"),
        (ChatRequest([user("Hi")], template_variables={"tools": []}), "chat_template_kwargs"),
    ],
)
def test_what_cannot_be_rendered_is_named(
    builder: PromptBuilder, request_: ChatRequest, field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        builder.build(request_)
    assert caught.value.field == field
