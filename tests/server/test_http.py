"""Bad input, keys, hosts, limits; going away, waiting, stopping."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from headgate.assistant import Assistant
from headgate.engine import Engine
from headgate.engine.ticket import Finished
from headgate.errors import StoreError, UsageError
from headgate.server import BackgroundServer, ServerOptions, create_app
from headgate.server.listen import allowed_hosts, is_loopback
from tests.server.conftest import MODEL, Served, record_tickets
from tests.server.samples import ASK, ENDLESS

CHAT = "/v1/chat/completions"
LONG: dict[str, Any] = {"messages": ASK, "logit_bias": ENDLESS, "stream": True}
PATHS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": ASK},
    "/v1/completions": {"prompt": "Oslo"},
    "/v1/responses": {"input": "Oslo"},
    "/v1/messages": {"messages": ASK, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": ASK},
}


@contextmanager
def serving(
    engine: Engine, *, sequences: int = 1, queue: int = 1, **options: Any
) -> Iterator[Served]:
    """A server of its own."""
    assistant = Assistant(engine, sequences=sequences, queue=queue, name=MODEL)
    app = create_app(assistant, ServerOptions(**options))
    with BackgroundServer(app) as server:
        yield Served(server.url, app, assistant, record_tickets(assistant))
    assistant.close()


def problem(response: httpx.Response) -> tuple[int, str]:
    """Status and message; the body must have the API's own shape."""
    document = response.json()
    error = document["error"]
    if "/messages" in response.url.path:
        assert set(document) == {"type", "error"} and document["type"] == "error"
        assert set(error) == {"type", "message"}
    else:
        assert set(document) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    return response.status_code, error["message"]


# Bad input


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "valid dictionary"),
        (b"{}", "Field required"),
    ],
)
def test_what_is_no_request_is_refused(
    client: httpx.Client, path: str, content: bytes, message: str
) -> None:
    headers = {"content-type": "application/json"}
    status, found = problem(client.post(path, content=content, headers=headers))
    assert status == 400 and message in found


@pytest.mark.parametrize("path", PATHS)
def test_forms_and_plain_text_are_refused(client: httpx.Client, path: str) -> None:
    # What a page of another site can send without asking.
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        body = json.dumps(PATHS[path])
        response = client.post(path, content=body, headers={"content-type": kind})
        assert problem(response)[0] == 400


def test_numbers_that_json_cannot_hold_do_not_come_back(client: httpx.Client) -> None:
    for number in (b"1e999", b"-1e999", b"1" * 5000):
        body = b'{"messages":[{"role":"user","content":"Hi"}],"metadata":{"a":' + number + b"}}"
        headers = {"content-type": "application/json"}
        status, message = problem(client.post(CHAT, content=body, headers=headers))
        assert status == 400 and ("too large" in message or "out of range" in message)


def test_unknown_paths_and_methods_have_the_same_shape(client: httpx.Client) -> None:
    assert problem(client.get("/v1/nothing"))[0] == 404
    assert problem(client.get("/v1/messages/nothing"))[0] == 404
    assert problem(client.delete(CHAT))[0] == 405
    assert problem(client.get("/v1/models/other"))[0] == 404
    assert problem(client.get("/v1/responses/resp_1"))[0] == 404


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"messages": [{"role": "system", "content": "Alone."}], "tool_choice": "required"},
         "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "schema": {"type": "no such type"}}}}, "response_format"),
        ({"messages": [{"role": "user", "content": "x" * 40_000}]}, "messages"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_a_400_that_names_the_field(
    client: httpx.Client, more: dict[str, Any], field: str
) -> None:
    response = client.post(CHAT, json={"messages": ASK, **more})
    assert problem(response)[0] == 400
    assert response.json()["error"]["param"] == field


def test_what_the_template_refuses_is_a_400(served: Served, client: httpx.Client) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise UsageError("the chat template refuses these messages: No user query found.")

    template = served.assistant.template
    original, template.render = template.render, refuse  # type: ignore[method-assign]
    try:
        status, message = problem(client.post(CHAT, json={"messages": ASK}))
    finally:
        template.render = original  # type: ignore[method-assign]
    assert status == 400 and "No user query found" in message


def test_failures_inside_are_told_without_their_details(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret of another client")

    monkeypatch.setattr(served.assistant, "prepare", fail)
    assert problem(client.post(CHAT, json={"messages": ASK})) == (
        500,
        "internal error; the server's log says more",
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_store_ends_an_answer_with_its_own_words(
    served: Served, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("layer 3, expert 7 is damaged")

    monkeypatch.setattr("headgate.assistant.reader.AnswerReader.push", fail)
    response = client.post(CHAT, json={"messages": ASK, "stream": stream})
    assert "layer 3, expert 7 is damaged" in response.text
    assert response.status_code == (200 if stream else 500)
    assert response.text.endswith("data: [DONE]\n\n") is stream


# Keys, hosts, limits


def test_a_key_is_wanted_everywhere_but_for_the_page_and_health(engine: Engine) -> None:
    with serving(engine, api_key="geheim-ü") as served, served.client() as client:
        for path, body in PATHS.items():
            response = client.post(path, json=body)
            assert problem(response)[0] == 401
            assert response.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/props", "/live", "/v1/models", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/").status_code in (200, 404)
        for wrong in ("x", "geheim", "geheim-u", "geheim-ü "[:7]):
            headers = {"authorization": f"Bearer {wrong}"}
            assert client.get("/v1/models", headers=headers).status_code == 401
        key = "geheim-ü".encode()
        for name, value in ((b"authorization", b"Bearer " + key), (b"x-api-key", key)):
            assert client.get("/v1/models", headers={name: value}).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("", 403),
        ("[", 403),
    ],
)
def test_on_loopback_only_loopback_names_are_answered(
    guarded: httpx.Client, host: str, status: int
) -> None:
    assert guarded.get("/v1/models", headers={"host": host}).status_code == status


@pytest.fixture(scope="module")
def guarded(engine: Engine) -> Iterator[httpx.Client]:
    options: dict[str, Any] = {
        "hosts": allowed_hosts("127.0.0.1"),
        "origins": ("https://friend.example",),
        "max_body": 1000,
    }
    with serving(engine, **options) as served, served.client() as client:
        yield client


def test_loopback_addresses() -> None:
    assert [is_loopback(x) for x in ("127.0.0.1", "127.3.2.1", "::1", "localhost")] == [True] * 4
    assert [is_loopback(x) for x in ("0.0.0.0", "::", "10.0.0.1", "example.com")] == [False] * 4
    assert allowed_hosts("0.0.0.0") is None


def test_other_origins_may_not_read_unless_allowed(guarded: httpx.Client) -> None:
    stranger = guarded.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers
    friend = guarded.get("/v1/models", headers={"origin": "https://friend.example"})
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"
    ask = {"origin": "https://friend.example", "access-control-request-method": "POST"}
    preflight = guarded.options(CHAT, headers=ask)
    assert preflight.status_code == 204
    assert "content-type" in preflight.headers["access-control-allow-headers"]
    assert guarded.options(CHAT, headers={"origin": "https://evil.example"}).status_code == 405


def test_every_response_forbids_foreign_content(guarded: httpx.Client) -> None:
    for path in ("/", "/v1/models", "/nothing"):
        headers = guarded.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_large_bodies_are_refused_before_they_are_read(guarded: httpx.Client) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    headers = {"content-type": "application/json"}
    assert problem(guarded.post(CHAT, content=body, headers=headers))[0] == 413

    def chunks() -> Iterator[bytes]:  # no Content-Length
        yield body[:600]
        yield body[600:]

    assert problem(guarded.post("/v1/messages", content=chunks(), headers=headers))[0] == 413


# Going away, waiting, stopping


def first_content(lines: Iterator[str]) -> None:
    """Read on until the answer has begun."""
    for line in lines:
        if '"content":"' in line and '"content":""' not in line:
            return
    raise AssertionError("the answer has no content")


def test_an_answer_stops_when_its_client_goes_away(served: Served, client: httpx.Client) -> None:
    with client.stream("POST", CHAT, json=LONG) as response:
        first_content(lines := response.iter_lines())
        assert next(lines) == ""
    *_, last = served.tickets[-1]
    assert isinstance(last, Finished) and last.figures.finish_reason == "cancelled"
    assert last.figures.generated_tokens < 2000


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/responses", "/v1/completions"])
def test_so_does_one_that_was_to_be_sent_whole(served: Served, path: str) -> None:
    body = {**PATHS[path], "logit_bias": ENDLESS, "max_tokens": 3000}
    if path == "/v1/messages" or path == "/v1/responses":
        del body["logit_bias"]
    if path == "/v1/responses":
        del body["max_tokens"]
    taken = len(served.tickets)
    waits = threading.Event()
    submit = served.assistant.scheduler.submit

    def submitted(*args: Any, **options: Any) -> Any:
        ticket = submit(*args, **options)
        ticket.on_event(lambda event: waits.set())
        return ticket

    served.assistant.scheduler.submit = submitted  # type: ignore[method-assign]
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        text = json.dumps(body)
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
        )
        assert waits.wait(10)
    served.assistant.scheduler.submit = submit  # type: ignore[method-assign]
    *_, last = served.tickets[taken]
    assert isinstance(last, Finished)
    if "logit_bias" in body:
        assert last.figures.finish_reason == "cancelled"


def test_a_full_queue_is_a_429_and_is_told_when_to_come_back(engine: Engine) -> None:
    with (
        serving(engine, sequences=1, queue=1) as served,
        served.client() as client,
        client.stream("POST", CHAT, json=LONG) as active,
    ):
        # Without its iterator a response is closed.
        first_content(lines := active.iter_lines())
        with client.stream("POST", CHAT, json=LONG) as waiting:
            assert waiting.status_code == 200
            for path, body in PATHS.items():
                if path != "/v1/messages/count_tokens":
                    response = client.post(path, json=body)
                    assert problem(response)[0] == 429
                    assert int(response.headers["retry-after"]) > 0
            state = served.assistant.scheduler.state()
            assert (state["active"], state["queued"]) == (1, 1)
        assert next(lines) == ""


def test_of_several_answers_all_start_or_none(engine: Engine) -> None:
    with serving(engine, sequences=1, queue=2) as served, served.client() as client:
        refused = client.post(CHAT, json={**LONG, "n": 4})
        assert problem(refused)[0] == 429
        for ticket in served.tickets:
            *_, last = ticket
            assert isinstance(last, Finished) and last.figures.finish_reason == "cancelled"
        assert client.post(CHAT, json={"messages": ASK}).status_code == 200


def test_silence_is_filled_with_signs_of_life(engine: Engine) -> None:
    with serving(engine, keep_alive_s=0.001) as served, served.client() as client:
        long = [{"role": "user", "content": "Oslo. " * 600}]
        text = client.post(CHAT, json={"messages": long, "max_tokens": 2, "stream": True}).text
        comments = [line for line in text.splitlines() if line.startswith(": ")]
        assert comments and set(comments) <= {
            ": waiting",
            *(f": prompt {n} of {n_all(text)} tokens" for n in range(5000)),
        }
        asked = {"messages": long, "max_tokens": 2, "stream": True}
        assert (
            'event: ping\ndata: {"type":"ping"}\n\n' in client.post("/v1/messages", json=asked).text
        )


def n_all(text: str) -> str:
    """The prompt's length as the comments tell it."""
    found = [line.split()[-2] for line in text.splitlines() if line.startswith(": prompt")]
    return found[0] if found else ""


def test_stopping_lets_answers_finish_and_takes_no_more(engine: Engine) -> None:
    assistant = Assistant(engine, sequences=2, queue=1, name=MODEL)
    app = create_app(assistant)
    with (
        BackgroundServer(app) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", CHAT, json={**LONG, "max_tokens": 100}) as response,
    ):
        lines = response.iter_lines()
        first_content(lines)
        app.state.stopping.set()
        refused = client.post(CHAT, json={"messages": ASK})
        assert problem(refused)[0] == 503 and int(refused.headers["retry-after"]) > 0
        assert client.get("/health").status_code == 503
        server.stop()
        assert list(lines)[-2] == "data: [DONE]"
    assistant.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_an_answer_that_shutdown_cuts_short_says_so(engine: Engine) -> None:
    assistant = Assistant(engine, sequences=1, queue=1, name=MODEL)
    with (
        BackgroundServer(create_app(assistant)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", CHAT, json=LONG) as response,
    ):
        lines = response.iter_lines()
        first_content(lines)
        assistant.close(0)
        rest = [line for line in lines if line]
    assert "the engine is shutting down" in rest[-2] and rest[-1] == "data: [DONE]"


def test_a_server_that_has_waited_long_enough_cuts_answers_short(engine: Engine) -> None:
    assistant = Assistant(engine, sequences=1, queue=1, name=MODEL)
    with (
        BackgroundServer(create_app(assistant), grace_s=0.01) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        client.stream("POST", CHAT, json=LONG) as response,
    ):
        lines = response.iter_lines()
        first_content(lines)
        server.stop()
        rest = [line for line in lines if line]
    assert "the engine is shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
