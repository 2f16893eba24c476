"""A server for the page's tests: the API's shapes, answers written in advance."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import headgate

PAGE = Path(headgate.__file__).parent / "server" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'"
)

#: A step of an answer: what the delta holds, a finish reason, or one of the two below.
Step = dict[str, Any] | str
WAIT = "wait for Backend.proceed"
DROP = "close the connection"


def text(*pieces: str) -> list[Step]:
    return [{"content": piece} for piece in pieces]


def thought(*pieces: str) -> list[Step]:
    return [{"reasoning_content": piece} for piece in pieces]


def call(name: str, *fragments: str, index: int = 0, wait: bool = False) -> list[Step]:
    """A tool call, its arguments in pieces; with ``wait`` it stops before the last one."""
    function = {"name": name, "arguments": ""}
    first = {"index": index, "id": f"call-{index}", "type": "function", "function": function}
    steps: list[Step] = [{"tool_calls": [first]}]
    pieces = [{"index": index, "function": {"arguments": fragment}} for fragment in fragments]
    steps.extend({"tool_calls": [piece]} for piece in pieces)
    if wait:
        steps.insert(-1, WAIT)
    return steps


def bitmap(cells: list[bool]) -> str:
    packed = bytearray(-(-len(cells) // 8))
    for i, cell in enumerate(cells):
        packed[i // 8] |= cell << (i % 8)
    return base64.b64encode(packed).decode()


@dataclass
class Backend:
    """What the server is told to do and what it saw."""

    answers: list[list[Step]] = field(default_factory=list)
    error: tuple[int, str] | None = None  # for every chat request
    key: str | None = None
    live: dict[str, Any] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)  # a client left midway
    proceed: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Forgets all of it, the running server's answers included."""
        self.__dict__.update(vars(Backend()))

    def app(self) -> ASGIApp:
        app = FastAPI()

        @app.get("/v1/models")
        async def models(request: Request) -> Response:
            return self._refusal(request) or JSONResponse({"data": [{"id": "demo"}]})

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            if refusal := self._refusal(request):
                return refusal
            if self.error:
                return _error(*self.error)
            self.requests.append(await request.json())
            steps = self.answers.pop(0)
            return StreamingResponse(self._chunks(steps), media_type="text/event-stream")

        @app.get("/live")
        async def live(request: Request) -> Response:
            refusal = self._refusal(request)
            return refusal or StreamingResponse(self._live(), media_type="text/event-stream")

        app.mount("/", StaticFiles(directory=PAGE, html=True))
        return with_policy(app)

    def _refusal(self, request: Request) -> Response | None:
        if self.key in (None, request.headers.get("authorization", "").removeprefix("Bearer ")):
            return None
        return _error(401, "an API key is needed")

    async def _chunks(self, steps: list[Step]) -> AsyncIterator[str]:
        left = True
        try:
            yield _event(choices=[{"delta": {"role": "assistant", "content": ""}}])
            for step in steps:
                if step == WAIT:
                    await self._proceeding()
                elif step == DROP:
                    left = False
                    return
                elif isinstance(step, str):
                    yield _event(choices=[{"delta": {}, "finish_reason": step}])
                elif "error" in step:
                    yield _event(**step)
                else:
                    yield _event(choices=[{"delta": step}])
            yield _event(choices=[], usage={"prompt_tokens": 1234, "completion_tokens": 56})
            yield "data: [DONE]\n\n"
            left = False
        finally:
            if left:
                self.gone.set()

    async def _proceeding(self) -> None:
        while not self.proceed.is_set():
            await asyncio.sleep(0.01)
        self.proceed.clear()

    async def _live(self) -> AsyncIterator[str]:
        while True:
            yield _event(**self.live)
            await asyncio.sleep(0.1)


def _event(**data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status)


def with_policy(app: ASGIApp) -> ASGIApp:
    """The page's Content-Security-Policy on every answer."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await app(scope, receive, with_header if scope["type"] == "http" else send)

    return wrapped


class _Server(uvicorn.Server):
    ready: threading.Event

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready.set()


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serves on a free port of 127.0.0.1; the value is the address, with a slash."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = _Server(config)
        server.ready = threading.Event()
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert server.ready.wait(10)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
