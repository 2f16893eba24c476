"""Running the application: a socket, an event loop, a graceful end."""

from __future__ import annotations

import ipaddress
import signal
import socket
import threading
from collections.abc import Callable
from types import TracebackType

import uvicorn
from fastapi import FastAPI

from headgate.errors import ResourceError, UsageError
from headgate.server.security import LOOPBACK_NAMES

#: Seconds that answers under way get to finish when the server is told to stop.
GRACE_S = 30


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str) -> frozenset[str] | None:
    """Names in the Host header that a server listening on ``host`` answers; None for
    all, where it is meant to be reached under names that it cannot know."""
    if not is_loopback(host):
        return None
    return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host}


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: the address is not one of this machine's, or the port no number.
        ResourceError: the port is taken or forbidden.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port is {port}, expected 0..65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise UsageError(f"host {host!r} is not an address of this machine") from None
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise ResourceError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def url_of(listening: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells the application before it begins to wait for open connections."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping.set()
        await super().shutdown(sockets)


def _server(app: FastAPI, grace_s: int) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace_s,
    )
    return _Server(config, app.state.stopping)


def serve(
    app: FastAPI,
    listening: socket.socket,
    close: Callable[[], None],
    grace_s: int = GRACE_S,
) -> None:
    """Serve until SIGINT or SIGTERM; answers under way may then finish, at a second
    SIGINT they may not.

    Args:
        close: called at the end.
    """
    # The server hands signals on when it has stopped; they have done their work then.
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _server(app, grace_s).run(sockets=[listening])
    finally:
        close()
        for number, handler in before.items():
            signal.signal(number, handler)


class BackgroundServer:
    """Serves in a thread of its own for as long as a ``with`` block runs.

    Attributes:
        url: where.
    """

    def __init__(self, app: FastAPI, host: str = "127.0.0.1", port: int = 0) -> None:
        self._socket = listen(host, port)
        self.url = url_of(self._socket)
        self._server = _server(app, 1)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Begin to stop, as a signal would."""
        self._server.should_exit = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._thread.join(10)
        self._socket.close()
