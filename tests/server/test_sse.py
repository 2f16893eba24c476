"""Streams, byte for byte."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from headgate.server.sse import comment, data, dump, named
from tests.server.samples import ASK, ASK_PARIS, QUESTION, WEATHER, WEATHER_SCHEMA

#: What differs from run to run: identifiers and times.
VARYING = re.compile(rb'"((?:chatcmpl-|cmpl-|resp_|msg_|fc_|call_|toolu_|rs_))[0-9a-f]{24}"')
TIME = re.compile(rb'"(created|created_at)":\d+')


def streamed(client: httpx.Client, path: str, body: dict[str, Any]) -> str:
    response = client.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    fixed = TIME.sub(rb'"\1":0', VARYING.sub(rb'"\1"', response.content))
    return fixed.decode()


def test_events_are_what_the_standard_says() -> None:
    assert data({"a": "ü\n"}) == 'data: {"a":"ü\\n"}\n\n'.encode()
    assert named("x", {}) == b"event: x\ndata: {}\n\n"
    assert comment("waiting") == b": waiting\n\n"


def test_what_utf8_cannot_hold_stays_an_escape() -> None:
    assert dump({"a": "\ud800"}) == b'{"a":"\\ud800"}'
    with pytest.raises(ValueError):
        dump(float("nan"))


def chat_chunk(delta: str, reason: str = "null") -> str:
    return (
        'data: {"id":"chatcmpl-","created":0,"model":"demo","object":"chat.completion.chunk",'
        f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]}}\n\n'
    )


def test_chat_completion_chunks(client: httpx.Client) -> None:
    pieces = ["Oslo", " is", " in", " N", "or", "way", "."]
    assert streamed(client, "/v1/chat/completions", {"messages": ASK}) == "".join(
        [
            chat_chunk('{"role":"assistant","content":""}'),
            *(chat_chunk(f'{{"content":"{piece}"}}') for piece in pieces),
            chat_chunk("{}", '"stop"'),
            "data: [DONE]\n\n",
        ]
    )


def test_chat_completion_chunks_of_a_call(client: httpx.Client) -> None:
    body = {"messages": ASK_PARIS, "tools": [WEATHER]}
    fragments = ['{\\"city\\": \\"', "Paris", '\\"', "}"]
    assert streamed(client, "/v1/chat/completions", body) == "".join(
        [
            chat_chunk('{"role":"assistant","content":""}'),
            chat_chunk(
                '{"tool_calls":[{"index":0,"id":"call_","type":"function",'
                '"function":{"name":"get_weather","arguments":""}}]}'
            ),
            *(
                chat_chunk(f'{{"tool_calls":[{{"index":0,"function":{{"arguments":"{x}"}}}}]}}')
                for x in fragments
            ),
            chat_chunk("{}", '"tool_calls"'),
            "data: [DONE]\n\n",
        ]
    )


def test_completion_chunks(client: httpx.Client) -> None:
    head = 'data: {"id":"cmpl-","object":"text_completion","created":0,"model":"demo","choices":'

    def chunk(text: str, reason: str) -> str:
        choice = f'{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{reason}}}'
        return f"{head}[{choice}]}}\n\n"

    body = {
        "prompt": "Oslo is in",
        "max_tokens": 1,
        "echo": True,
        "stream_options": {"include_usage": True},
    }
    usage = (
        '"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6,'
        '"prompt_tokens_details":{"cached_tokens":0},'
        '"completion_tokens_details":{"reasoning_tokens":0}}'
    )
    assert streamed(client, "/v1/completions", body) == "".join(
        [
            chunk("Oslo is in", "null"),
            chunk(" ", "null"),
            chunk("", '"length"'),
            f"{head}[],{usage}}}\n\n",
            "data: [DONE]\n\n",
        ]
    )


def event(name: str, fields: str) -> str:
    return f'event: {name}\ndata: {{"type":"{name}"{fields}}}\n\n'


def test_messages_events(client: httpx.Client) -> None:
    tool = {"name": "get_weather", "description": "Get the weather forecast"}
    body = {
        "max_tokens": 100,
        "messages": ASK_PARIS,
        "tools": [{**tool, "input_schema": WEATHER_SCHEMA}],
    }
    found = re.sub(
        r'"input_tokens":\d+,"cache_creation_input_tokens":0,"cache_read_input_tokens":\d+,'
        r'"output_tokens":(\d+)',
        r'COUNTS,"output_tokens":\1',
        streamed(client, "/v1/messages", body),
    )
    message = (
        '{"id":"msg_","type":"message","role":"assistant","model":"demo","content":[],'
        '"stop_reason":null,"stop_sequence":null,"usage":{COUNTS,"output_tokens":0}}'
    )
    block = '{"type":"tool_use","id":"toolu_","name":"get_weather","input":{}}'
    assert found == "".join(
        [
            event("message_start", f',"message":{message}'),
            event("content_block_start", f',"index":0,"content_block":{block}'),
            *(
                event(
                    "content_block_delta",
                    f',"index":0,"delta":{{"type":"input_json_delta","partial_json":"{x}"}}',
                )
                for x in ('{\\"city\\": \\"', "Paris", '\\"', "}")
            ),
            event("content_block_stop", ',"index":0'),
            event(
                "message_delta",
                ',"delta":{"stop_reason":"tool_use","stop_sequence":null},'
                '"usage":{COUNTS,"output_tokens":15}',
            ),
            event("message_stop", ""),
        ]
    )


def test_responses_events(client: httpx.Client) -> None:
    found = streamed(client, "/v1/responses", {"input": QUESTION, "max_output_tokens": 1})
    whole = re.compile(r'"response":\{"id":"resp_".*\}\}\n')
    number = iter(range(100))

    def numbered(name: str, fields: str) -> str:
        return event(name, f',"sequence_number":{next(number)}{fields}')

    at = ',"item_id":"msg_","output_index":0,"content_index":0'
    text = '{"type":"output_text","annotations":[],"logprobs":[],"text":"%s"}'
    item = '{"id":"msg_","type":"message","role":"assistant","status":"%s","content":[%s]}'
    assert whole.sub('"response":RESPONSE}\n', found) == "".join(
        [
            numbered("response.created", ',"response":RESPONSE'),
            numbered("response.in_progress", ',"response":RESPONSE'),
            numbered(
                "response.output_item.added",
                f',"output_index":0,"item":{item % ("in_progress", "")}',
            ),
            numbered("response.content_part.added", f'{at},"part":{text % ""}'),
            numbered("response.output_text.delta", f'{at},"delta":"Oslo","logprobs":[]'),
            numbered("response.output_text.done", f'{at},"text":"Oslo","logprobs":[]'),
            numbered("response.content_part.done", f'{at},"part":{text % "Oslo"}'),
            numbered(
                "response.output_item.done",
                f',"output_index":0,"item":{item % ("incomplete", text % "Oslo")}',
            ),
            numbered("response.incomplete", ',"response":RESPONSE'),
        ]
    )
