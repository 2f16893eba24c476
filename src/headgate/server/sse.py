"""Server-sent events, and noticing that a client has gone.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

#: Seconds of silence after which a sign of life is sent.
KEEP_ALIVE_S = 10.0


def dump(document: Any) -> bytes:
    """Compact JSON in UTF-8. Unpaired surrogates, which a model can write as escapes
    but UTF-8 cannot hold, stay escapes."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def data(document: Any) -> bytes:
    """An event without a name."""
    return b"data: " + dump(document) + b"\n\n"


def named(name: str, document: Any) -> bytes:
    """An event with a name."""
    return b"event: " + name.encode() + b"\n" + data(document)


def comment(text: str) -> bytes:
    """What clients skip, but proxies and timeouts notice."""
    return b": " + text.encode() + b"\n\n"


class EventStream(Response):
    """Sends what an asynchronous generator yields, and closes the generator as soon as
    the client has gone.

    Args:
        events: complete events, as bytes.
        close: called at the end, even if not one event has been asked for.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], close: Callable[[], None] = lambda: None
    ) -> None:
        self._events, self._close = events, close
        self.background = None
        self.status_code = 200
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The length is not known, and init_headers has seen an empty body.
        headers = [(k, v) for k, v in self.raw_headers if k != b"content-length"]
        sending = asyncio.ensure_future(self._send(send, headers))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._close()
            for task in (sending, leaving):
                task.cancel()
            done = await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()
        if isinstance(done[0], Exception) and not isinstance(done[0], OSError):
            raise done[0]

    async def _send(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class ClientGone(Exception):
    """Nobody waits for the response any more."""


async def unless_gone(
    request: Request, work: Callable[[], Awaitable[T]], close: Callable[[], None]
) -> T:
    """The result of ``work``, which is cancelled when the client goes away.

    Args:
        close: called at the end, and first thing when the client has gone.

    Raises:
        ClientGone: it went away.
    """
    working = asyncio.ensure_future(work())
    leaving = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        close()
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
