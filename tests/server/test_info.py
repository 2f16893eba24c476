"""Models, settings, metrics, the live feed, the page."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headgate.server.files import page_routes
from headgate.server.live import LiveFeed
from tests.server.conftest import MODEL, Served
from tests.server.samples import ASK


def test_health_and_settings(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    props = client.get("/props").json()
    assert (props["model"], props["context"], props["sequences"]) == (MODEL, 4096, 4)
    assert props["lossy"] == [] and props["default_sampling"]["temperature"] == 0


def figures(client: httpx.Client) -> dict[str, float]:
    lines = client.get("/metrics").text.splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(value) for name, value in pairs}


def test_metrics_count_tokens_answers_and_responses(client: httpx.Client) -> None:
    before = figures(client)
    usage = client.post("/v1/chat/completions", json={"messages": ASK}).json()["usage"]
    client.post("/v1/chat/completions", json={})
    client.get("/v1/no/such/path")
    after = figures(client)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("headgate_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("headgate_generated_tokens_total") == usage["completion_tokens"]
    assert grown('headgate_answers_total{finish_reason="stop"}') == 1
    assert grown("headgate_time_to_first_token_seconds_count") == 1
    assert grown("headgate_time_per_token_seconds_count") == 1
    path = 'path="/v1/chat/completions"'
    assert grown(f'headgate_http_responses_total{{{path},status="200"}}') == 1
    assert grown(f'headgate_http_responses_total{{{path},status="400"}}') == 1
    assert grown('headgate_http_responses_total{path="other",status="404"}') == 1
    assert 0 < after["headgate_expert_hit_rate"] <= 1
    assert after["headgate_memory_resident_bytes"] > 1 << 20
    assert after["headgate_requests_queued"] == after["headgate_answers_active"] == 0


def bits(text: str, shape: tuple[int, int]) -> Any:
    packed = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(packed, bitorder="little")[: shape[0] * shape[1]].reshape(shape)


def test_the_live_feed_tells_what_happened_since_its_last_message(
    served: Served, client: httpx.Client
) -> None:
    feed = LiveFeed(served.assistant)
    quiet = feed.message()
    assert quiet["tokens_per_s"] is None and quiet["hit_rate"] is None
    client.post("/v1/chat/completions", json={"messages": ASK})
    busy = feed.message()
    assert busy["tokens_per_s"] > 0 and 0 < busy["hit_rate"] <= 1
    assert busy["memory_bytes"] > 0 and (busy["active"], busy["queued"]) == (0, 0)
    heat = busy["heat"]
    shape = (heat["layers"], heat["experts"])
    assert shape == (8, 64)
    assert (bits(heat["resident"], shape) == served.assistant.scheduler.resident()).all()
    assert (bits(heat["read"], shape) <= bits(heat["resident"], shape)).all()


def test_the_live_feed_is_a_stream(client: httpx.Client) -> None:
    with client.stream("GET", "/live") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        line = next(response.iter_lines())
    assert json.loads(line.removeprefix("data: "))["model"] == MODEL


def test_only_the_page_s_own_files_are_served(tmp_path: Path) -> None:
    for name in ("index.html", "app.js", "notes.txt", ".secret.js"):
        (tmp_path / name).write_text("x")
    assert {route.path for route in page_routes(tmp_path)} >= {"/", "/index.html", "/app.js"}
    assert "/notes.txt" not in {route.path for route in page_routes(tmp_path)}


@pytest.mark.parametrize("path", ["/../errors.py", "/%2e%2e/errors.py", "/page/index.html"])
def test_nothing_else_can_be_had(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_page_is_served_at_the_root(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "<html" in response.text
