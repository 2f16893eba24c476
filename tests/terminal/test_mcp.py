"""Tools of MCP servers over stdio."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headgate.assistant import Assistant
from headgate.errors import UsageError
from headgate.terminal import Chat, LocalTool, Toolbox
from headgate.terminal.mcp_servers import McpServers
from tests.server.samples import PARIS
from tests.terminal.parts import Person, Screen

SERVER = Path(__file__).with_name("mcp_server.py")


def command(*args: object) -> str:
    return shlex.join([sys.executable, str(SERVER), *map(str, args)])


@pytest.fixture(scope="module")
def tools() -> Iterator[dict[str, LocalTool]]:
    with McpServers() as servers:
        yield {tool.name: tool for tool in servers.start(command())}


def run(tools: dict[str, LocalTool], name: str, **arguments: Any) -> str:
    call = tools[name].run
    assert call is not None
    return call(arguments)


def test_a_servers_functions_are_tools(tools: dict[str, LocalTool]) -> None:
    assert list(tools) == ["add", "get_weather", "fail", "sleep"]
    function = tools["add"].declaration["function"]
    assert function["description"] == "Add two numbers"
    assert set(function["parameters"]["properties"]) == {"a", "b"}
    assert function["parameters"]["required"] == ["a", "b"]


def test_calls_return_text_and_errors_are_errors(tools: dict[str, LocalTool]) -> None:
    assert run(tools, "add", a=2, b=3) == "5"
    with pytest.raises(RuntimeError, match="fail"):
        run(tools, "fail")
    with pytest.raises(RuntimeError):
        run(tools, "add", a="many", b=3)
    assert run(tools, "add", a=1, b=1) == "2"  # and it still serves


def test_the_model_gets_what_a_server_returns_after_a_yes(
    assistant: Assistant, tools: dict[str, LocalTool]
) -> None:
    person, screen = Person(["yes"]), Screen()
    chat = Chat(assistant, Toolbox([tools["get_weather"]]), screen, person)
    chat.say(PARIS)
    assert person.asked == ['get_weather(city="Paris")']
    assert screen.content == "Done. The reference is RGABz."


def test_servers_end_with_the_program(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with McpServers() as servers:
        (first, *_) = servers.start(command(mark))
        assert not mark.exists()
    assert mark.read_text() == "ended"
    servers.close()  # no harm
    assert first.run is not None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("/no/such/program", "does not start: No such file or directory"),
        (f"{sys.executable} -c \"import sys; sys.exit('out of order')\"", "said: out of order"),
        ("'", "No closing quotation"),
        ("  ", "needs a command"),
    ],
)
def test_servers_that_do_not_start_give_one_line(text: str, complaint: str) -> None:
    with McpServers() as servers, pytest.raises(UsageError, match=complaint) as caught:
        servers.start(text)
    assert "\n" not in str(caught.value)


def test_there_is_no_shell(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with McpServers() as servers, pytest.raises(UsageError, match="does not start"):
        servers.start(f"{sys.executable} -c pass; touch {mark}")
    assert not mark.exists()


def test_a_server_that_dies_is_an_error_of_its_calls(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    source = SERVER.read_text() + f"\nPath({str(mark)!r}).write_text('')\n"
    dying = tmp_path / "dying.py"
    dying.write_text(
        source.replace("return a + b", "import os; os._exit(1)").rsplit("if __name__", 1)[0]
        + "server.run()\n"
    )
    with McpServers() as servers:
        found = {t.name: t for t in servers.start(shlex.join([sys.executable, str(dying)]))}
        for _ in range(2):
            with pytest.raises(Exception, match=r".+"):
                run(found, "add", a=1, b=1)


def test_a_missing_package_is_named() -> None:
    code = (
        "import sys; sys.modules['mcp'] = None\n"
        "from headgate.cli.main import main\n"
        "sys.argv = ['headgate', 'chat', '--mcp', 'server']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, input=""
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "headgate: error: --mcp needs the package mcp: pip install 'headgate[mcp]'\n"
    )
