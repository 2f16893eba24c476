"""Running the application: a socket, an event loop, a graceful end."""

from __future__ import annotations

import ipaddress
import math
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

import uvicorn
from fastapi import FastAPI
from starlette.datastructures import State

from headgate.errors import ResourceError, UsageError
from headgate.server.security import LOOPBACK_NAMES

#: Seconds that answers under way get to finish when the server is told to stop.
GRACE_S = 30
#: Seconds to tell their clients that they have been cut short, before connections are closed.
PARTING_S = 10


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
        listening = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise ResourceError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    # The event loop turns Nagle's algorithm off for connections of which it is told that they
    # are TCP. With it, every response to a client that acknowledges late waits for 40 ms.
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listening.detach())


def url_of(listening: socket.socket) -> str:
    """The address of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells the application before it begins to wait for open connections, and has it cut
    answers short when that has taken long enough or at another signal."""

    def __init__(self, config: uvicorn.Config, state: State, grace_s: float) -> None:
        super().__init__(config)
        self._state, self._cutting = state, False
        self._timer = threading.Timer(grace_s, state.cut_short)
        self._timer.daemon = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and not self._cutting:
            self._cutting = True
            threading.Thread(target=self._state.cut_short, daemon=True).start()
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._state.stopping.set()
        self._timer.start()
        await super().shutdown(sockets)
        self._timer.cancel()


def _server(app: FastAPI, grace_s: float) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(grace_s + PARTING_S),
    )
    return _Server(config, app.state, grace_s)


def serve(
    app: FastAPI,
    listening: socket.socket,
    close: Callable[[], None],
    grace_s: float = GRACE_S,
) -> None:
    """Serve until SIGINT or SIGTERM; answers under way may then finish. After ``grace_s``
    seconds, or at a second signal, they are cut short, and their clients told so.

    Args:
        close: called at the end.
    """
    threads = set(threading.enumerate())
    # The server hands signals on when it has stopped; they have done their work then.
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _server(app, grace_s).run(sockets=[listening])
    finally:
        close()
        # Those of the event loop are about to end. The interpreter must not overtake them:
        # what they hold would be reported as leaked.
        for thread in set(threading.enumerate()) - threads:
            thread.join(1)
        for number, handler in before.items():
            signal.signal(number, handler)


class BackgroundServer:
    """Serves in a thread of its own for as long as a ``with`` block runs.

    Attributes:
        url: where.
    """

    def __init__(
        self, app: FastAPI, host: str = "127.0.0.1", port: int = 0, grace_s: float = 1
    ) -> None:
        self._socket = listen(host, port)
        self.url = url_of(self._socket)
        self._server = _server(app, grace_s)
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
