"""``headgate chat`` as a process: in a terminal, and through pipes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headgate.cli.main import app
from headgate.errors import HeadgateError
from tests.conftest import DemoStore
from tests.server.samples import ANSWER, PARIS, QUESTION

TOOLS = '''
def get_weather(city: str) -> dict:
    """Get the weather forecast"""
    return {"ok": True, "id": "RGABz"}
'''
CTRL_C, CTRL_D = "\x03", "\x04"

#: The terminal becomes the process's own, so that Ctrl-C is a signal.
START = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from headgate.cli.main import main
sys.argv[0] = "headgate"
main()
"""


class Terminal:
    """A process in a terminal of 80 by 24."""

    def __init__(self, *args: object) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "chat", *map(str, args)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.text, self._seen = "", 0

    def expect(self, pattern: str) -> str:
        """Wait for output that has not been waited for; returns all up to its end."""
        deadline = time.monotonic() + 30
        while not (found := re.search(pattern, self.text[self._seen :])):
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            assert ready, self.text
            self._read()
        before, self._seen = self._seen, self._seen + found.end()
        return self.text[before : self._seen]

    def _read(self) -> None:
        data = os.read(self._master, 65536).decode()
        self.text += re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", data)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> int:
        """Wait for the end; returns the exit status."""
        with contextlib.suppress(OSError):  # the other side is closed
            while select.select([self._master], [], [], 30)[0]:
                self._read()
        return self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    started: list[Terminal] = []
    yield started
    for terminal in started:
        terminal.kill()


def test_a_conversation_in_a_terminal(
    demo_store: DemoStore, tmp_path: Path, terminals: list[Terminal]
) -> None:
    tools, saved = tmp_path / "tools.py", tmp_path / "chat.json"
    tools.write_text(TOOLS)
    terminal = Terminal(demo_store(), "--tools", tools, "--context", 1024)
    terminals.append(terminal)
    terminal.expect(r"(?s)context 1024 tokens, lossy: none, 1 tool\..*leaves\.\s+>")
    terminal.type(f"{QUESTION}\r")
    terminal.expect(re.escape(ANSWER) + r"\s+>")
    terminal.type(f"{PARIS}\r")
    terminal.expect(r'run get_weather\(city="Paris"\)\?')
    terminal.expect(r"\[a\]lways for get_weather in this session \(no\):")
    terminal.type("y\r")
    terminal.expect(r"Done\. The reference is RGABz\.\s+>")
    terminal.type("/stats\r")
    stats = terminal.expect(r"lossy +none\s+>")
    assert re.search(r"\d+ tokens, [1-9]\d* of them cached", stats)
    for figure in (r"[\d.]+ tokens/s", r"after [\d.]+ s", r"hit rate +\d+%", r"per token", "peak"):
        assert re.search(figure, stats), figure
    terminal.type(f"/save {saved}\r")
    terminal.expect(r"saved in")
    terminal.expect(">")
    terminal.type("/load /no/such/file\r")
    terminal.expect(r"error: cannot read /no/such/file: No such file or directory\s+>")
    terminal.type(f"half{CTRL_C}")
    terminal.expect(r"Ctrl-C again, or Ctrl-D, leaves\s+>")
    terminal.type(CTRL_C)
    assert terminal.close() == 0 and "Traceback" not in terminal.text
    roles = [m["role"] for m in json.loads(saved.read_text())["messages"]]
    assert roles == ["user", "assistant", "user", "assistant", "tool", "assistant"]


def test_ctrl_c_stops_the_answer_and_not_the_program(
    demo_store: DemoStore, terminals: list[Terminal]
) -> None:
    # So hot that a stop token is as likely as any other of 4096.
    hot = ("--temperature", 100, "--seed", 1, "--context", 4096)
    terminal = Terminal(demo_store(), *hot)
    terminals.append(terminal)
    terminal.expect(r"leaves\.\s+>")
    for _ in range(2):
        terminal.type("Tell me a story.\r")
        terminal.expect(r"story\.\s+\S+.*\S+")
        terminal.type(CTRL_C)
        terminal.expect(r"stopped[^\n]*\s+>")
    terminal.type(CTRL_D)
    assert terminal.close() == 0 and "Traceback" not in terminal.text


def test_lines_from_a_pipe_are_answered_plainly_up_to_an_error(demo_store: DemoStore) -> None:
    script = f"{QUESTION}\n/load /no/file\n{QUESTION}\n"
    command = [sys.executable, "-m", "headgate", "chat", str(demo_store()), "--context", "512"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, input=script)
    assert (done.returncode, done.stdout) == (2, f"{ANSWER}\n")
    assert done.stderr == "headgate: error: cannot read /no/file: No such file or directory\n"


def test_lossy_answers_are_said_to_be(demo_store: DemoStore) -> None:
    command = [sys.executable, "-m", "headgate", "chat", str(demo_store(4)), "--expert-bits", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, input="Hello?\n")
    assert done.returncode == 0 and done.stdout
    assert done.stderr.startswith("headgate: lossy: expert-bits 2 (stored 4): ")
    assert "measured on this store" in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("/no/such/store",), "/no/such/store"),
        (("--tools", "/no/such/tools.py"), "cannot read tools file /no/such/tools.py"),
        (("--tools", "/no/such/tools.json"), "cannot read tools file /no/such/tools.json"),
        (("--allow", "f"), "there is no function named f"),
        (("--mcp", "/no/such/server"), "MCP server '/no/such/server' does not start"),
        (("--temperature", "-1"), "temperature -1.0 is not in 0..100"),
        (("--memory", "much"), "'much' is not a size"),
        (("--memory", "1M"), "a memory budget of 1 MiB cannot work"),
    ],
)
def test_bad_options_are_refused_with_one_line(args: tuple[str, ...], message: str) -> None:
    with pytest.raises(HeadgateError) as caught:
        app(["chat", *args], standalone_mode=False)
    assert message in str(caught.value) and "\n" not in str(caught.value)
