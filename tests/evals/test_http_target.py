"""Asking a server: what is sent, what is understood, what becomes of failures."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from headgate.chat import ToolCall
from headgate.errors import UsageError
from headgate.evals.http_target import HttpTarget, parse_response, request_body
from headgate.evals.run import run_suite, summary
from headgate.evals.suites import SUITES
from headgate.evals.suites.items import Item
from headgate.evals.target import DoesNotFit, NoAnswer, Question
from tests.evals.servers import completion, server

HELLO = Question([{"role": "user", "content": "Hi"}])


@contextmanager
def target(url: str, timeout: float = 20.0) -> Iterator[HttpTarget]:
    found = HttpTarget(url, timeout=timeout, pause=0.001, key="secret")
    try:
        yield found
    finally:
        found.close()


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_question_is_asked_of_the_servers_first_model() -> None:
    with server(lambda body: (200, completion("Hello"))) as (url, bodies), target(url) as asked:
        assert asked.answer(HELLO).text == "Hello"
        assert asked.speed.to_dict()["generated_tokens"] == 4
    assert bodies[0]["path"] == "/v1/chat/completions"
    assert bodies[0]["key"] == "Bearer secret"
    assert (bodies[0]["model"], bodies[0]["temperature"]) == ("small", 0)


def test_calls_and_results_are_sent_in_openai_form() -> None:
    wanted = {"function": {"name": "f", "arguments": {"a": "ü"}}, "type": "function"}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Do both"},
        {"role": "assistant", "content": "", "tool_calls": [wanted, wanted]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "", "tool_calls": [wanted]},
        {"role": "tool", "content": "3"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    body = request_body("m", Question(messages, tools, strict=True, tool_choice="f"))
    calls = [c for m in body["messages"] for c in m.get("tool_calls", [])]
    results = [m["tool_call_id"] for m in body["messages"] if m["role"] == "tool"]
    assert [c["id"] for c in calls] == results
    assert len(set(results)) == 3
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": "ü"}
    assert body["tools"][0]["function"]["strict"] is True
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert "strict" not in tools[0]["function"]


def test_calls_reasoning_and_length_are_understood() -> None:
    message = completion("", tool_calls=[call("f", '{"a": 1}'), call("g", "")])
    message["choices"][0]["message"]["reasoning_content"] = "hm"
    message["choices"][0]["finish_reason"] = "length"
    answer = parse_response(message)
    assert answer.calls == (ToolCall("f", {"a": 1}), ToolCall("g", {}))
    assert (answer.reasoning, answer.finish_reason) == ("hm", "length")


def test_arguments_that_are_no_object_are_kept_as_broken() -> None:
    answer = parse_response(completion(tool_calls=[call("f", '{"a": '), call("g", "[1]")]))
    assert answer.calls == ()
    assert answer.broken == ('{"a": ', "[1]")


def test_reasoning_in_the_content_is_taken_apart() -> None:
    answer = parse_response(completion("I think.</think>\n\nYes."))
    assert (answer.text, answer.reasoning) == ("Yes.", "I think.")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failure_is_tried_again(status: int) -> None:
    replies = iter([(status, "no"), (status, "no"), (200, completion("Hello"))])
    with server(lambda body: next(replies)) as (url, bodies), target(url) as asked:
        assert asked.answer(HELLO).text == "Hello"
    assert len(bodies) == 3


@pytest.mark.parametrize(
    ("reply", "attempts"),
    [
        ((500, "broken"), 3),
        ((404, "no such model"), 1),
        ((400, "bad field"), 1),
        ((200, "not JSON"), 1),
        ((200, []), 1),
        ((200, {"choices": []}), 1),
        ((200, {"choices": [{"message": None}]}), 1),
    ],
)
def test_what_is_no_answer_is_an_error(reply: tuple[int, Any], attempts: int) -> None:
    with server(lambda body: reply) as (url, bodies):
        with target(url) as asked, pytest.raises(NoAnswer):
            asked.answer(HELLO)
        assert len(bodies) == attempts


def test_prompt_that_is_too_long_is_told_from_other_refusals() -> None:
    text = "the prompt makes 9000 tokens, the context holds 4096"
    with server(lambda body: (400, text)) as (url, bodies):
        with target(url) as asked, pytest.raises(DoesNotFit):
            asked.answer(HELLO)
        assert len(bodies) == 1


def test_server_that_refuses_template_variables_is_asked_without_them() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        if "chat_template_kwargs" in body:
            return 400, "unknown field chat_template_kwargs"
        return 200, completion("Hello")

    with server(reply) as (url, bodies), target(url) as asked:
        assert [asked.answer(HELLO).text for _ in range(2)] == ["Hello", "Hello"]
    assert len(bodies) == 3  # it is asked once


def test_time_out_is_tried_again_and_then_an_error() -> None:
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        found = HttpTarget(url, "m", timeout=0.05, pause=0.001)
        with pytest.raises(NoAnswer, match="failed 3 times, last with ReadTimeout"):
            found.answer(HELLO)
        found.close()


def test_nobody_there_is_an_error_and_nonsense_a_usage_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(NoAnswer, match="ConnectError"):
        HttpTarget(f"http://127.0.0.1:{port}/v1", pause=0.001)
    with pytest.raises(UsageError, match="no address"):
        HttpTarget("http://[::1", "m")


def test_errors_are_counted_as_errors_not_as_wrong_answers() -> None:
    items = [
        Item(name, "k", {"messages": [{"role": "user", "content": name}], "mentions": ["yes"]})
        for name in ("good", "bad", "down", "long")
    ]
    replies = {
        "good": (200, completion("yes")),
        "bad": (200, completion("no")),
        "down": (503, "down"),
        "long": (400, "maximum context length exceeded"),
    }

    def reply(body: dict[str, Any]) -> tuple[int, Any]:
        return replies[body["messages"][0]["content"]]

    with server(reply) as (url, _), target(url) as asked:
        outcomes = run_suite(SUITES["recall"], asked, items, batch=4)
    assert [o.right for o in outcomes] == [True, False, None, None]
    found = summary(outcomes)
    assert (found["n"], found["score"], found["errors"], found["skipped"]) == (2, 0.5, 1, 1)
    assert found["failures"] == {"wrong value": 1}
