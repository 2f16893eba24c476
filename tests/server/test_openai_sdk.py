"""The official OpenAI SDK, unmodified, against a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel

from tests.server.conftest import MODEL, Served
from tests.server.samples import (
    ANSWER,
    ASK,
    ASK_BOTH,
    ASK_JSON,
    ASK_JSON_FREE,
    ASK_PARIS,
    ENDLESS,
    MAIL,
    QUESTION,
    REPORT,
    RESULT,
    WEATHER,
)

TOOLS: list[Any] = [WEATHER, MAIL]


@pytest.fixture
def sdk(served: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def called(message: Any) -> list[tuple[str, Any]]:
    return [(c.function.name, json.loads(c.function.arguments)) for c in message.tool_calls or ()]


def test_chat(sdk: Any) -> None:
    found = sdk.chat.completions.create(model=MODEL, messages=ASK)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")
    assert choice.message.tool_calls is None
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_chat_stream_with_usage(sdk: Any) -> None:
    options: Any = {"include_usage": True}
    stream = sdk.chat.completions.create(
        model=MODEL, messages=ASK, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == ANSWER and len(pieces) > 3
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_tool_choice_auto_calls_what_was_asked_for(sdk: Any) -> None:
    found = sdk.chat.completions.create(model=MODEL, messages=ASK_PARIS, tools=TOOLS)
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert called(choice.message) == [("get_weather", {"city": "Paris"})]


def test_tool_calls_stream_as_fragments_of_json(sdk: Any) -> None:
    with sdk.chat.completions.stream(model=MODEL, messages=ASK_PARIS, tools=TOOLS) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert called(final.choices[0].message) == [("get_weather", {"city": "Paris"})]
    deltas = [e for e in events if e.type == "tool_calls.function.arguments.delta"]
    assert "".join(e.arguments_delta for e in deltas) == '{"city": "Paris"}' and len(deltas) > 2


def test_tool_choice_none_calls_nothing(sdk: Any) -> None:
    found = sdk.chat.completions.create(
        model=MODEL, messages=ASK_PARIS, tools=TOOLS, tool_choice="none", max_tokens=60
    )
    assert found.choices[0].message.tool_calls is None


def test_tool_choice_required_calls_although_nothing_asks_for_it(sdk: Any) -> None:
    found = sdk.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required"
    )
    assert found.choices[0].finish_reason == "tool_calls"
    assert {name for name, _ in called(found.choices[0].message)} <= {"get_weather", "send_mail"}


def test_named_tool_choice_calls_that_tool_once(sdk: Any) -> None:
    schema = MAIL["function"]["parameters"]
    short = {**schema["properties"], "to": {"type": "string", "maxLength": 40}}
    schema = {**schema, "properties": short}
    strict: Any = {
        **MAIL,
        "function": {**MAIL["function"], "strict": True, "parameters": schema},
    }
    found = sdk.chat.completions.create(
        model=MODEL,
        messages=ASK_PARIS,
        tools=[WEATHER, strict],
        tool_choice={"type": "function", "function": {"name": "send_mail"}},
    )
    ((name, arguments),) = called(found.choices[0].message)
    assert name == "send_mail"
    jsonschema.validate(arguments, schema)


def test_parallel_calls_and_one_at_a_time(sdk: Any) -> None:
    asked: Any = {
        "model": MODEL,
        "messages": ASK_BOTH,
        "tools": TOOLS,
        "tool_choice": "required",
    }
    both = sdk.chat.completions.create(**asked)
    assert called(both.choices[0].message) == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Madrid"}),
    ]
    ids = [call.id for call in both.choices[0].message.tool_calls or ()]
    assert len(set(ids)) == len(ids)
    one = sdk.chat.completions.create(**asked, parallel_tool_calls=False)
    assert called(one.choices[0].message) == [("get_weather", {"city": "Paris"})]


def test_results_of_tools_go_back_with_arguments_as_the_sdk_has_them(sdk: Any) -> None:
    first = sdk.chat.completions.create(model=MODEL, messages=ASK_PARIS, tools=TOOLS)
    message = first.choices[0].message
    assert message.tool_calls
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
    history: Any = [*ASK_PARIS, message.model_dump(), result]
    second = sdk.chat.completions.create(model=MODEL, messages=history, tools=TOOLS)
    assert second.choices[0].message.content == REPORT
    assert second.choices[0].finish_reason == "stop"
    assert second.usage is not None and second.usage.prompt_tokens_details is not None


class City(BaseModel):
    name: str
    population: int


def test_structured_output_is_what_the_sdk_parses(sdk: Any) -> None:
    found = sdk.chat.completions.parse(
        model=MODEL, messages=ASK_JSON, response_format=City, max_tokens=200
    )
    assert found.choices[0].message.parsed == City(name="Oslo", population=700)


def test_json_object(sdk: Any) -> None:
    found = sdk.chat.completions.create(
        model=MODEL, messages=ASK_JSON_FREE, response_format={"type": "json_object"}
    )
    assert json.loads(found.choices[0].message.content or "") == {"name": "Oslo", "population": 700}


def test_a_response_format_leaves_tools_callable(sdk: Any, served: Served) -> None:
    schema: Any = {"name": "city", "schema": City.model_json_schema()}
    form: Any = {"type": "json_schema", "json_schema": schema}
    asked: Any = {"model": MODEL, "tools": TOOLS, "response_format": form, "max_tokens": 300}
    tool = sdk.chat.completions.create(messages=ASK_PARIS, **asked)
    assert called(tool.choices[0].message) == [("get_weather", {"city": "Paris"})]
    no_call = {str(served.assistant.tokenizer.id_of("<tool_call>")): -100}
    text = sdk.chat.completions.create(messages=ASK_JSON, logit_bias=no_call, **asked)
    assert City.model_validate_json(text.choices[0].message.content or "").name == "Oslo"


def test_reasoning_is_apart_from_content_on_and_off(sdk: Any) -> None:
    on = sdk.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="high")
    message: Any = on.choices[0].message
    assert message.reasoning_content and message.content
    assert "</think>" not in message.content
    assert on.usage is not None and on.usage.completion_tokens_details is not None
    assert (on.usage.completion_tokens_details.reasoning_tokens or 0) > 0
    off: Any = sdk.chat.completions.create(model=MODEL, messages=ASK, reasoning_effort="none")
    assert not hasattr(off.choices[0].message, "reasoning_content")
    stream = sdk.chat.completions.create(
        model=MODEL,
        messages=ASK,
        stream=True,
        extra_body={"chat_template_kwargs": {"enable_thinking": True}},
    )
    deltas: list[Any] = [chunk.choices[0].delta for chunk in stream]
    thought = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(thought) == message.reasoning_content
    assert "".join(delta.content or "" for delta in deltas) == message.content


def test_log_probabilities(sdk: Any) -> None:
    found = sdk.chat.completions.create(model=MODEL, messages=ASK, logprobs=True, top_logprobs=3)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    assert "".join(entry.token for entry in logprobs.content) == ANSWER
    for entry in logprobs.content:
        assert entry.logprob <= 0 and entry.bytes == list(entry.token.encode())
        assert len(entry.top_logprobs) == 3 and entry.top_logprobs[0].logprob >= entry.logprob
    stream = sdk.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=3, stream=True
    )
    streamed: list[Any] = []
    for chunk in stream:
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert streamed == logprobs.content


def test_several_answers_and_seeds(sdk: Any) -> None:
    asked: Any = {"model": MODEL, "temperature": 1.5, "max_tokens": 12, "logit_bias": ENDLESS}
    story: Any = [{"role": "user", "content": "Tell me a short story."}]

    def texts(**more: Any) -> list[str | None]:
        found = sdk.chat.completions.create(messages=story, **asked, **more)
        return [choice.message.content for choice in found.choices]

    three = texts(n=3, seed=1)
    assert len(set(three)) == 3
    assert texts(n=3, seed=1) == three and texts(n=1, seed=1) == three[:1]


def test_several_answers_stream_side_by_side(sdk: Any) -> None:
    stream = sdk.chat.completions.create(model=MODEL, messages=ASK, n=2, stream=True)
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [ANSWER, ANSWER]


def test_stop_strings_and_limits(sdk: Any) -> None:
    stopped = sdk.chat.completions.create(model=MODEL, messages=ASK, stop=["Nor"])
    assert stopped.choices[0].message.content == "Oslo is in"
    assert stopped.choices[0].finish_reason == "stop"
    cut = sdk.chat.completions.create(model=MODEL, messages=ASK, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None and cut.usage.completion_tokens == 2


def test_penalties_and_bias_change_what_is_said(sdk: Any, served: Served) -> None:
    (oslo,) = served.assistant.tokenizer.encode("Oslo")
    for more in (
        {"logit_bias": {str(oslo): -100}},
        {"presence_penalty": 2, "frequency_penalty": 2},
    ):
        asked: Any = {"model": MODEL, "messages": ASK, "max_tokens": 40, **more}
        text = sdk.chat.completions.create(**asked).choices[0].message.content
        assert text and ("Oslo" not in text or "logit_bias" not in more)


def test_a_repeated_prompt_is_taken_from_the_cache(sdk: Any) -> None:
    system = {"role": "system", "content": "Answer truthfully. " * 30}
    cached = []
    for question in (QUESTION, "Which country is Lima in?"):
        messages: Any = [system, {"role": "user", "content": question}]
        usage = sdk.chat.completions.create(model=MODEL, messages=messages).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[0] == 0 and cached[1] > 64


def test_completions_with_echo_and_logprobs(sdk: Any) -> None:
    found = sdk.completions.create(
        model=MODEL, prompt="Oslo is in Norway.", max_tokens=0, echo=True, logprobs=1
    )
    logprobs = found.choices[0].logprobs
    assert found.choices[0].text == "Oslo is in Norway." and logprobs is not None
    assert logprobs.tokens and "".join(logprobs.tokens) == "Oslo is in Norway."
    assert logprobs.token_logprobs and logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    text = "Oslo is in Norway."
    for token, offset in zip(logprobs.tokens, logprobs.text_offset or (), strict=True):
        assert text[offset:].startswith(token)


def test_completions_of_several_prompts_and_of_token_ids(sdk: Any, served: Served) -> None:
    ids = served.assistant.tokenizer.encode("Oslo is in")
    asked: Any = {"model": MODEL, "max_tokens": 4}
    (text,) = sdk.completions.create(prompt="Oslo is in", **asked).choices
    assert sdk.completions.create(prompt=ids, **asked).choices[0].text == text.text
    several = sdk.completions.create(prompt=["Oslo is in", "Lima is in"], n=2, **asked)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].text == several.choices[1].text == text.text
    streamed = sdk.completions.create(prompt="Oslo is in", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.text


def test_models_tell_their_context(sdk: Any) -> None:
    (model,) = sdk.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert model.max_model_len == 4096
    assert sdk.models.retrieve(MODEL) == model


def test_errors_have_the_types_that_the_sdk_knows(sdk: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="gpt-4o", messages=ASK)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        sdk.completions.create(model=MODEL, prompt="Oslo " * 5000)
    assert long.value.code == "context_length_exceeded"
    system: Any = [{"role": "system", "content": "No question."}]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model=MODEL, messages=system, extra_body={"no_such": 1})
    assert refused.value.param == "no_such" and refused.value.code == "unknown_parameter"
