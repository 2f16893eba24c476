"""Messages that come line by line, without a terminal."""

from __future__ import annotations

from io import StringIO

import pytest

from headgate.assistant import Assistant
from headgate.errors import UsageError
from headgate.terminal import Chat, ChatOptions, LocalTool, Toolbox
from headgate.terminal.keyboard import Nobody
from headgate.terminal.loop import follow_script
from headgate.terminal.view import PlainView
from tests.server.samples import ANSWER, PARIS, QUESTION, WEATHER


def answered(assistant: Assistant, script: str, tools: Toolbox | None = None) -> tuple[str, str]:
    """What is on stdout, and what on stderr."""
    out, err = StringIO(), StringIO()
    options = ChatOptions(interactive=False)
    chat = Chat(assistant, tools or Toolbox(), PlainView(out, err), Nobody(), options)
    follow_script(chat, StringIO(script))
    return out.getvalue(), err.getvalue()


def weather() -> Toolbox:
    return Toolbox([LocalTool(WEATHER, "here", lambda _: '{"ok": true, "id": "RGABz"}')])


def test_each_line_is_a_message_or_a_command(assistant: Assistant) -> None:
    script = f"{QUESTION}\n\n/system Be\\\nbrief.\n/undo\n{QUESTION}\n/exit\n{QUESTION}"
    out, err = answered(assistant, script)
    assert out == f"{ANSWER}\n{ANSWER}\n"
    assert err == f"system message: Be\nbrief.\ntaken back: {QUESTION}\n"


def test_only_allowed_functions_run(
    assistant: Assistant, capsys: pytest.CaptureFixture[str]
) -> None:
    tools = weather()
    out, _ = answered(assistant, PARIS, tools)
    assert "RGABz" not in out
    assert 'get_weather(city="Paris") was not run' in capsys.readouterr().err
    tools.allow("get_weather")
    out, err = answered(assistant, PARIS, tools)
    assert out == "Done. The reference is RGABz.\n"
    assert err.startswith('running get_weather(city="Paris")\nget_weather: {"ok"')


def test_tables_are_plain_text(assistant: Assistant) -> None:
    out, _ = answered(assistant, "/tools\n", weather())
    assert out.splitlines()[0] == "get_weather  Get the weather forecast"
    assert "\x1b" not in out and all(line == line.rstrip() for line in out.splitlines())


def test_the_first_error_ends_a_script(assistant: Assistant) -> None:
    with pytest.raises(UsageError, match="there is no command /nothing"):
        answered(assistant, f"/nothing\n{QUESTION}")
