"""OpenAI's Responses API through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from headgate.server.errors import ApiError
from headgate.server.responses_store import ResponseStore
from tests.server.conftest import MODEL, Served
from tests.server.samples import ANSWER, ASK_JSON, PARIS, QUESTION, REPORT, RESULT, WEATHER

TOOL: Any = {"type": "function", "strict": False, **WEATHER["function"]}


@pytest.fixture
def sdk(served: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_question_and_its_answer(sdk: Any) -> None:
    found = sdk.responses.create(model=MODEL, input=QUESTION, metadata={"a": "b"})
    assert (found.output_text, found.status) == (ANSWER, "completed")
    assert found.metadata == {"a": "b"} and found.usage is not None
    assert found.usage.total_tokens == found.usage.input_tokens + found.usage.output_tokens


def test_stream_events_are_numbered_and_add_up(sdk: Any) -> None:
    with sdk.responses.stream(model=MODEL, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


def test_function_calls_and_their_outputs(sdk: Any) -> None:
    first = sdk.responses.create(model=MODEL, input=PARIS, tools=[TOOL])
    (call,) = first.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    by_id = sdk.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[output],
        tools=[TOOL],
    )
    history: Any = [{"role": "user", "content": PARIS}, call.model_dump(exclude_none=True), output]
    by_items = sdk.responses.create(model=MODEL, input=history, tools=[TOOL], store=False)
    assert by_id.output_text == by_items.output_text == REPORT
    by_reference: Any = [history[0], {"type": "item_reference", "id": call.id}, output]
    referred = sdk.responses.create(model=MODEL, input=by_reference, tools=[TOOL])
    assert referred.output_text == by_id.output_text


def test_streamed_function_call(sdk: Any) -> None:
    with sdk.responses.stream(model=MODEL, input=PARIS, tools=[TOOL]) as stream:
        deltas = [e.delta for e in stream if e.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output[0].arguments == '{"city": "Paris"}'


def test_a_stored_response_is_continued_read_and_deleted(sdk: Any) -> None:
    first = sdk.responses.create(model=MODEL, input=QUESTION, instructions="Be brief.")
    second = sdk.responses.create(
        model=MODEL, input="Which country is Lima in?", previous_response_id=first.id
    )
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert sdk.responses.retrieve(first.id).output_text == first.output_text
    (item,) = sdk.responses.input_items.list(first.id).data
    assert item.content == QUESTION
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        sdk.responses.retrieve(first.id)
    unstored = sdk.responses.create(model=MODEL, input=QUESTION, store=False)
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.responses.create(model=MODEL, input="And?", previous_response_id=unstored.id)
    assert caught.value.param == "previous_response_id"


class City(BaseModel):
    name: str
    population: int


def test_structured_output(sdk: Any) -> None:
    found = sdk.responses.parse(model=MODEL, input=ASK_JSON, text_format=City)
    assert found.output_parsed == City(name="Oslo", population=700)


def test_reasoning_is_an_item_of_its_own(sdk: Any) -> None:
    found = sdk.responses.create(model=MODEL, input=QUESTION, reasoning={"effort": "low"})
    assert [item.type for item in found.output] == ["reasoning", "message"]
    assert found.output[0].content[0].text
    assert found.usage is not None and found.usage.output_tokens_details.reasoning_tokens > 0
    again: Any = [
        {"role": "user", "content": QUESTION},
        *(item.model_dump(exclude_none=True) for item in found.output),
        {"role": "user", "content": "Which country is Lima in?"},
    ]
    assert sdk.responses.create(model=MODEL, input=again).output_text


def test_log_probabilities(sdk: Any) -> None:
    found = sdk.responses.create(
        model=MODEL, input=QUESTION, top_logprobs=2, include=["message.output_text.logprobs"]
    )
    part: Any = found.output[0].content[0]
    assert "".join(entry.token for entry in part.logprobs) == ANSWER


def test_an_answer_that_is_cut_is_incomplete(sdk: Any) -> None:
    found = sdk.responses.create(model=MODEL, input=QUESTION, max_output_tokens=2)
    assert found.status == "incomplete" and found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"


def test_what_the_server_does_not_run_is_refused_by_name(sdk: Any) -> None:
    search: Any = {"type": "web_search"}
    refused: dict[str, dict[str, Any]] = {
        "tools[0].type": {"tools": [search]},
        "background": {"background": True},
        "truncation": {"truncation": "auto"},
        "input[0].content[0].type": {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
        },
    }
    for field, more in refused.items():
        asked: Any = {"model": MODEL, "input": QUESTION, **more}
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.responses.create(**asked)
        assert caught.value.param == field


def test_the_store_forgets_the_least_recently_used() -> None:
    store = ResponseStore(limit=2500)
    document: dict[str, Any] = {"output": [{"id": "i", "text": "x" * 300}]}
    for name in ("a", "b", "c"):
        store.put({**document, "id": name}, [], [])
        store.get("a")
    store.put({**document, "id": "d"}, [], [])
    store.get("a")
    with pytest.raises(ApiError):
        store.get("b")
    with pytest.raises(ApiError, match="is not stored"):
        store.item("nothing")
