"""``headgate serve`` as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headgate.cli.main import app
from headgate.errors import HeadgateError
from headgate.server.listen import listen
from tests.conftest import DemoStore
from tests.server.samples import ANSWER, ASK, ENDLESS


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "headgate", "serve", *map(str, args)]


@contextmanager
def serving(log: Path, *args: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server whose messages go to ``log``, and its address once it has said that."""
    with (
        log.open("w") as messages,
        subprocess.Popen(
            command(*args), stderr=messages, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        try:
            until = time.monotonic() + 60
            # The greeting is one write and a line's end; notes may come before it.
            greeting = r"(?s) at (http://127\.0\.0\.1:\d+).*\n\Z"
            while not (found := re.search(greeting, said := log.read_text())):
                assert process.poll() is None and time.monotonic() < until, said
                time.sleep(0.02)
            yield process, found[1]
        finally:
            process.kill()


def test_it_says_where_it_listens_and_stops_when_told(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("geheim\n")
    log = tmp_path / "log"
    args = ("--port", 0, "--context", 256, "--api-key-file", key, "--expert-bits", 3)
    with serving(log, demo_store(4, 8), *args) as (process, url):
        said = log.read_text()
        assert f"headgate: serving 4-8 at {url}, to clients with the key\n" in said
        assert "context 256 tokens" in said and "lossy: expert-bits 3 (stored 4)\n" in said
        assert "measured on this store" in said.splitlines()[-1]  # or that nothing has been
        assert "geheim" not in said
        with httpx.Client(base_url=url, headers={"x-api-key": "geheim"}) as client:
            answer: Any = client.post("/v1/chat/completions", json={"messages": ASK}).json()
            assert answer["choices"][0]["message"]["content"] == ANSWER
            assert client.get("/v1/models").json()["data"][0]["lossy"]
            named = client.get("/health", headers={"host": "evil.example"})
            assert named.status_code == 403
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, "")
        assert log.read_text() == said + "headgate: stopped\n"


def test_a_second_signal_cuts_an_answer_short_and_its_client_is_told(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    args = ("--port", 0, "--prefix-memory", 0)
    with serving(log, demo_store(4, 8), *args) as (process, url):
        said = log.read_text()
        body = {"messages": ASK, "stream": True, "logit_bias": ENDLESS}
        with (
            httpx.Client(base_url=url, timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert "shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert log.read_text() == said + "headgate: stopped\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--host", "0.0.0.0"), "listening on 0.0.0.0 needs --api-key or --api-key-file"),
        (("--host", "no.such.host.invalid"), "listening on no.such.host.invalid needs --api-key"),
        (("--api-key", "a", "--api-key-file", "b"), "exclude each other"),
        (("--api-key", " "), "the API key is empty"),
        (("--api-key-file", "/no/such/file"), "cannot read the key file"),
        (("--port", "99999"), "port is 99999"),
        (("--queue", "0", "--port", "0"), "queue is 0"),
        (("--sequences", "0", "--port", "0"), "sequences is 0"),
        (("--prefix-memory", "much"), "'much' is not a size"),
        (("/no/such/store", "--port", "0"), "/no/such/store"),
    ],
)
def test_bad_options_are_refused_with_one_line(args: tuple[str, ...], message: str) -> None:
    with pytest.raises(HeadgateError) as caught:
        app(["serve", *args], standalone_mode=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_connections_are_known_to_be_tcp_so_that_nothing_waits_to_be_acknowledged() -> None:
    with (
        listen("127.0.0.1", 0) as listening,
        socket.create_connection(listening.getsockname()),
        listening.accept()[0] as connection,
    ):
        assert connection.proto == socket.IPPROTO_TCP  # what asyncio goes by


def test_a_port_that_is_taken_is_said_to_be(demo_store: DemoStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        args = command(demo_store(4, 8), "--port", port)
        done = subprocess.run(args, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
