"""The official Anthropic SDK, unmodified, against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.server.conftest import MODEL, Served
from tests.server.samples import (
    ANSWER,
    ASK,
    ASK_JSON,
    ASK_PARIS,
    CITY_SCHEMA,
    ENDLESS,
    QUESTION,
    REPORT,
    RESULT,
    WEATHER_SCHEMA,
)

TOOLS: Any = [
    {
        "name": "get_weather",
        "description": "Get the weather forecast",
        "input_schema": WEATHER_SCHEMA,
        "cache_control": {"type": "ephemeral"},
    }
]


@pytest.fixture
def sdk(served: Served) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def test_messages(sdk: Any) -> None:
    found = sdk.messages.create(model=MODEL, max_tokens=100, messages=ASK)
    assert [block.model_dump(exclude_none=True) for block in found.content] == [
        {"type": "text", "text": ANSWER}
    ]
    assert (found.stop_reason, found.role, found.model) == ("end_turn", "assistant", MODEL)
    assert found.usage.input_tokens > 0 and found.usage.output_tokens > 0


def test_stream(sdk: Any) -> None:
    with sdk.messages.stream(model=MODEL, max_tokens=100, messages=ASK) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == ANSWER and len(pieces) > 3
    assert final.stop_reason == "end_turn"
    whole = sdk.messages.create(model=MODEL, max_tokens=100, messages=ASK)
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_tool_use_and_its_result(sdk: Any) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 200, "tools": TOOLS}
    with sdk.messages.stream(messages=ASK_PARIS, **asked) as stream:
        streamed = stream.get_final_message()
    found = sdk.messages.create(messages=ASK_PARIS, **asked)
    for message in (streamed, found):
        block = message.content[-1]
        assert isinstance(block, anthropic.types.ToolUseBlock)
        assert (block.name, block.input) == ("get_weather", {"city": "Paris"})
        assert message.stop_reason == "tool_use"
    result = {
        "type": "tool_result",
        "tool_use_id": found.content[-1].id,
        "content": [{"type": "text", "text": RESULT}],
    }
    answered = sdk.messages.create(
        messages=[
            *ASK_PARIS,
            {"role": "assistant", "content": found.content},
            {"role": "user", "content": [result]},
        ],
        **asked,
    )
    assert (answered.stop_reason, answered.content[0].text) == ("end_turn", REPORT)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_tool_choice_makes_it_call(sdk: Any, choice: Any) -> None:
    found = sdk.messages.create(
        model=MODEL,
        max_tokens=200,
        messages=ASK,
        tools=TOOLS,
        tool_choice={**choice, "disable_parallel_tool_use": True},
    )
    assert [block.type for block in found.content] == ["tool_use"]


def test_tool_choice_none(sdk: Any) -> None:
    found = sdk.messages.create(
        model=MODEL, max_tokens=40, messages=ASK_PARIS, tools=TOOLS, tool_choice={"type": "none"}
    )
    assert {block.type for block in found.content} == {"text"}


def test_thinking_within_its_budget(sdk: Any, served: Served) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 200, "messages": ASK}

    def thought(budget: int) -> str:
        thinking = {"type": "enabled", "budget_tokens": budget}
        found = sdk.messages.create(**asked, thinking=thinking)
        assert [block.type for block in found.content] == ["thinking", "text"]
        text: str = found.content[0].thinking
        return text

    assert thought(1024).startswith(short := thought(3))
    assert len(served.assistant.tokenizer.encode(short)) <= 3
    with sdk.messages.stream(**asked, thinking={"type": "adaptive"}) as stream:
        types = [e.delta.type for e in stream if e.type == "content_block_delta"]
    assert types[0] == "thinking_delta" and types[-1] == "text_delta"


def test_reasoning_goes_back(sdk: Any) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 100, "thinking": {"type": "adaptive"}}
    first = sdk.messages.create(messages=ASK, **asked)
    follow = {"role": "user", "content": "Which country is Lima in?"}
    history: Any = [*ASK, {"role": "assistant", "content": first.content}, follow]
    assert sdk.messages.create(messages=history, **asked).content


def test_stop_sequences_and_limits(sdk: Any) -> None:
    asked: Any = {"model": MODEL, "messages": ASK}
    found = sdk.messages.create(max_tokens=100, stop_sequences=["Nor"], **asked)
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", "Nor")
    assert found.content[0].text == "Oslo is in"
    assert sdk.messages.create(max_tokens=2, **asked).stop_reason == "max_tokens"


def test_system_blocks_and_cached_tokens(sdk: Any) -> None:
    block = {"text": "Answer well. " * 40, "cache_control": {"type": "ephemeral"}, "type": "text"}
    system: Any = [block, {"type": "text", "text": "And briefly."}]
    usages = [
        sdk.messages.create(
            model=MODEL, max_tokens=5, system=system, messages=[{"role": "user", "content": text}]
        ).usage
        for text in (QUESTION, "Which country is Lima in?")
    ]
    assert usages[0].cache_read_input_tokens == 0
    assert (usages[1].cache_read_input_tokens or 0) > 64
    total = usages[1].input_tokens + (usages[1].cache_read_input_tokens or 0)
    counted = sdk.messages.count_tokens(
        model=MODEL,
        system=system,
        messages=[{"role": "user", "content": "Which country is Lima in?"}],
    )
    assert counted.input_tokens == total


def test_structured_output(sdk: Any) -> None:
    found = sdk.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=ASK_JSON,
        output_config={"format": {"type": "json_schema", "schema": CITY_SCHEMA}},
    )
    text = found.content[0].text
    assert json.loads(text) == {"name": "Oslo", "population": 700}


def test_models(sdk: Any) -> None:
    (model,) = sdk.models.list().data
    assert (model.id, model.type) == (MODEL, "model")
    assert sdk.models.retrieve(MODEL).id == MODEL


def test_errors_have_the_types_that_the_sdk_knows(sdk: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        sdk.messages.create(model="claude-opus-5", max_tokens=5, messages=ASK)
    assert missing.value.type == "not_found_error"
    image: Any = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\].type"):
        sdk.messages.create(
            model=MODEL, max_tokens=5, messages=[{"role": "user", "content": [image]}]
        )
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]"):
        sdk.messages.create(model=MODEL, max_tokens=5, messages=ASK, tools=[search])


def test_unknown_fields_are_refused_by_name(sdk: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="logit_bias: unknown field"):
        sdk.messages.create(
            model=MODEL, max_tokens=5, messages=ASK, extra_body={"logit_bias": ENDLESS}
        )
