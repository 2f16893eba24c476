"""An MCP server over stdin and stdout; with an argument, writes there when it ends."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from mcp.server import MCPServer

server = MCPServer("trial")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers"""
    return a + b


@server.tool()
def get_weather(city: str) -> str:
    """Get the weather forecast"""
    return '{"ok": true, "id": "RGABz"}'


@server.tool()
def fail() -> str:
    """Fails"""
    raise ValueError("as it should")


@server.tool()
def sleep() -> str:
    """Takes its time"""
    time.sleep(60)
    return "awake"


if __name__ == "__main__":
    print("a word on stderr", file=sys.stderr)
    try:
        server.run()
    finally:
        if len(sys.argv) > 1:
            Path(sys.argv[1]).write_text("ended")
