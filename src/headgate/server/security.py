"""Who may speak to the server, and how much: plain ASGI middleware.

- Host names: a page of another site can make a browser talk to 127.0.0.1 under that
  site's name (DNS rebinding). On a loopback address only loopback names are answered.
- Keys are compared in constant time.
- Bodies over the limit are refused before anything reads them.
- Cross-origin reading is off: no CORS header is sent unless an origin is allowed.
"""

from __future__ import annotations

import hmac
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headgate.server.errors import Problem, error_response
from headgate.server.metrics import Metrics

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: For the page: its own files and nothing else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
ALLOWED_METHODS = "GET, POST, DELETE"
ALLOWED_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"


@dataclass(frozen=True)
class Guard:
    """Middleware that lets a request in, or answers it itself.

    Args:
        api_key: what clients must present; None lets everybody in.
        hosts: names in the Host header that are answered; None answers all.
        origins: web origins whose pages may read responses.
        open_paths: paths that need no key.
        max_body: bytes.
        stopping: set when no more work is taken.
    """

    app: ASGIApp
    metrics: Metrics
    api_key: str | None
    hosts: frozenset[str] | None
    origins: Sequence[str]
    open_paths: frozenset[str]
    max_body: int
    stopping: threading.Event

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        allowed = origin if origin in self.origins else None

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
                out = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                if allowed:
                    out["access-control-allow-origin"] = allowed
                    out["cross-origin-resource-policy"] = "cross-origin"
                    out.add_vary_header("origin")
            await send(message)

        problem = self._refusal(scope, headers)
        if problem is not None:
            await error_response(problem, scope)(scope, receive, finish)
        elif scope["method"] == "OPTIONS" and allowed:
            await self._preflight(finish)
        else:
            await self.app(scope, _limited(receive, self.max_body), finish)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        if self.hosts is not None and _host_name(headers.get("host", "")) not in self.hosts:
            return Problem(403, "this Host is not served here: use localhost or 127.0.0.1")
        preflight = scope["method"] == "OPTIONS" and "origin" in headers
        if self.api_key is not None and not preflight and scope["path"] not in self.open_paths:
            given = _given_key(headers)
            if given is None:
                return Problem(
                    401,
                    "no API key: send Authorization: Bearer KEY or x-api-key: KEY",
                    code="invalid_api_key",
                )
            if not hmac.compare_digest(given.encode("latin-1"), self.api_key.encode()):
                return Problem(401, "the API key is wrong", code="invalid_api_key")
        if self.stopping.is_set() and scope["method"] == "POST":
            return Problem(503, "the server is shutting down", code="shutting_down")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            return _too_large(self.max_body)
        return None

    def _count(self, scope: Scope, status: int) -> None:
        # The route's pattern, or any client could make up new labels.
        path = getattr(scope.get("route"), "path", "other")
        self.metrics.responses.labels(path, status).inc()

    async def _preflight(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", ALLOWED_METHODS.encode()),
            (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _host_name(host: str) -> str:
    """A Host header without its port, in lower case."""
    if host.startswith("["):
        return host[: host.find("]") + 1].lower()
    return host.partition(":")[0].lower()


def _given_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key")


def _too_large(limit: int) -> Problem:
    return Problem(
        413, f"the body is larger than the {limit} bytes that are taken", code="request_too_large"
    )


def _limited(receive: Receive, limit: int) -> Receive:
    """``receive`` for bodies that come without an honest length."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, _too_large(limit).message)
        return message

    return limited
