"""``headgate serve`` as a process."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
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


def test_it_says_where_it_listens_and_stops_when_told(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("geheim\n")
    args = ("--port", 0, "--context", 256, "--api-key-file", key, "--expert-bits", 3)
    process = subprocess.Popen(
        command(demo_store(4, 8), *args), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        said = "".join(process.stderr.readline() for _ in range(3))
        found = re.search(r"headgate: serving 4-8 at (http://127\.0\.0\.1:\d+), to clients", said)
        assert found, said
        assert "context 256 tokens" in said and "lossy: expert-bits 3 (stored 4)" in said
        assert "geheim" not in said
        with httpx.Client(base_url=found[1], headers={"x-api-key": "geheim"}) as client:
            answer: Any = client.post("/v1/chat/completions", json={"messages": ASK}).json()
            assert answer["choices"][0]["message"]["content"] == ANSWER
            assert client.get("/v1/models").json()["data"][0]["lossy"]
            named = client.get("/health", headers={"host": "evil.example"})
            assert named.status_code == 403
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        # Of the greeting's end communicate() sees what readline() has not fetched, or nothing.
        assert (process.returncode, out) == (0, "")
        assert err.endswith("headgate: stopped\n") and "Traceback" not in err
    finally:
        process.kill()
        process.wait()


def test_a_second_signal_cuts_an_answer_short_and_its_client_is_told(
    demo_store: DemoStore,
) -> None:
    process = subprocess.Popen(
        command(demo_store(4, 8), "--port", 0, "--prefix-memory", 0),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        # All of it: communicate() does not see what readline() has fetched beyond its line.
        said = "".join(process.stderr.readline() for _ in range(4))
        found = re.search(r" at (http://\S+)", said)
        assert found, said
        body = {"messages": ASK, "stream": True, "logit_bias": ENDLESS}
        with (
            httpx.Client(base_url=found[1], timeout=60) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            assert next(lines)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            rest = [line for line in lines if line]
        assert "shutting down" in rest[-2] and rest[-1] == "data: [DONE]"
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "headgate: stopped\n")
    finally:
        process.kill()
        process.wait()


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
