"""Tools of MCP servers: processes of our own that speak over their stdin and stdout.

Model Context Protocol, https://modelcontextprotocol.io. The servers are started without a
shell, in a session of their own so that a Ctrl-C is not theirs, and end with the program.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import shlex
import tempfile
import threading
from collections.abc import Coroutine
from typing import IO, TYPE_CHECKING, Any, TypeVar

from headgate.errors import UsageError
from headgate.terminal.text import one_line
from headgate.terminal.toolbox import LocalTool

if TYPE_CHECKING:
    from mcp import ClientSession, StdioServerParameters

T = TypeVar("T")

#: Seconds for a server to start and to list its tools. A first start may install it.
START_S = 60.0
#: Seconds for all servers to end; the protocol's own steps take up to six.
STOP_S = 10.0


class McpServers:
    """Running servers; a context manager that stops them.

    A thread runs their event loop. Each server is one task, in which its connection is
    opened and closed.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mcp", daemon=True)
        self._stop = asyncio.Event()
        self._tasks: list[concurrent.futures.Future[None]] = []
        self._thread.start()

    def __enter__(self) -> McpServers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, command: str) -> list[LocalTool]:
        """Start a server; returns its tools.

        Args:
            command: program and arguments, quoted as for a shell, which there is none of.

        Raises:
            UsageError: the package ``mcp`` is missing, or the server does not start.
        """
        parameters = _parameters(command)
        ready: concurrent.futures.Future[list[LocalTool]] = concurrent.futures.Future()
        self._tasks.append(
            asyncio.run_coroutine_threadsafe(self._serve(command, parameters, ready), self._loop)
        )
        return ready.result()

    def close(self) -> None:
        """Stop the servers. No harm if that has been done."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        _, late = concurrent.futures.wait(self._tasks, timeout=STOP_S)
        for task in late:
            task.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _serve(
        self,
        command: str,
        parameters: StdioServerParameters,
        ready: concurrent.futures.Future[list[LocalTool]],
    ) -> None:
        from mcp import ClientSession, stdio_client

        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
            try:
                async with (
                    stdio_client(parameters, errlog=log) as (read, write),
                    ClientSession(read, write) as session,
                ):
                    opening = asyncio.ensure_future(_open(session))
                    stopping = asyncio.ensure_future(self._stop.wait())
                    await asyncio.wait(
                        (opening, stopping), timeout=START_S, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not opening.done():
                        opening.cancel()
                        raise TimeoutError(f"no answer within {START_S:.0f} s")
                    declared = await opening
                    ready.set_result([self._tool(command, session, tool) for tool in declared])
                    await stopping
            except Exception as error:
                if not ready.done():
                    ready.set_exception(_not_started(command, error, log))

    def _tool(self, command: str, session: ClientSession, tool: dict[str, Any]) -> LocalTool:
        def run(arguments: dict[str, Any]) -> str:
            return self._wait(_call(session, tool["name"], arguments))

        return LocalTool({"type": "function", "function": tool}, f"MCP server {command}", run)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the loop do something; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise


def _parameters(command: str) -> StdioServerParameters:
    try:
        from mcp import StdioServerParameters
    except ImportError:
        raise UsageError("--mcp needs the package mcp: pip install 'headgate[mcp]'") from None
    for name in ("mcp", "client"):  # what it logs would stand amid the conversation
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--mcp {command!r}: {error}") from None
    if not words:
        raise UsageError("--mcp needs a command")
    return StdioServerParameters(command=words[0], args=words[1:])


async def _open(session: ClientSession) -> list[dict[str, Any]]:
    """Shake hands; the declarations of all tools, page by page."""
    from mcp.types import PaginatedRequestParams

    await session.initialize()
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = PaginatedRequestParams(cursor=cursor) if cursor else None
        page = await session.list_tools(params=params)
        for tool in page.tools:
            described = {"description": tool.description} if tool.description else {}
            found.append({"name": tool.name, **described, "parameters": tool.input_schema})
        cursor = page.next_cursor
        if not cursor:
            return found


async def _call(session: ClientSession, name: str, arguments: dict[str, Any]) -> str:
    result = await session.call_tool(name, arguments)
    parts = [
        block.text if block.type == "text" else f"[{block.type}, which cannot be shown]"
        for block in result.content
    ]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    text = "\n".join(parts)
    if result.is_error:
        raise RuntimeError(text or "the server reports an error")
    return text


def _not_started(command: str, error: BaseException, log: IO[str]) -> UsageError:
    # A task group wraps what was raised inside it.
    while getattr(error, "exceptions", ()):
        error = error.exceptions[0]  # type: ignore[attr-defined]
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    said = ""
    with contextlib.suppress(OSError, ValueError):
        log.seek(0)
        lines = [line for line in log.read()[-4096:].splitlines() if line.strip()]
        said = f"; it said: {one_line(lines[-1])}" if lines else ""
    name = type(error).__name__
    return UsageError(f"MCP server {command!r} does not start: {one_line(reason) or name}{said}")
