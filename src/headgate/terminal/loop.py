"""From one message to the next."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from rich.console import Console
from rich.text import Text

from headgate.assistant import Assistant
from headgate.errors import HeadgateError, PromptTooLong
from headgate.terminal.chat import Chat, ChatOptions
from headgate.terminal.commands import COMMANDS, Commands, Leave
from headgate.terminal.keyboard import Keyboard, Nobody, silent_keyboard
from headgate.terminal.text import printable
from headgate.terminal.toolbox import Toolbox
from headgate.terminal.view import LiveView, PlainView


def run_chat(assistant: Assistant, tools: Toolbox, options: ChatOptions, system: str = "") -> None:
    """Talk until the user leaves: in the terminal, or line by line if stdin or stdout is
    none.

    Raises:
        HeadgateError: something went wrong, where stdin or stdout is no terminal.
    """
    if options.interactive:
        console = Console()
        keyboard = Keyboard(console, [f"/{name}" for name in COMMANDS])
        view = LiveView(console)
        chat = Chat(assistant, tools, view, keyboard, options, system)
        view.note(_greeting(chat))
        talk(chat, keyboard, console)
    else:
        chat = Chat(assistant, tools, PlainView(), Nobody(), options, system)
        follow_script(chat, sys.stdin)


def talk(chat: Chat, keyboard: Keyboard, console: Console) -> None:
    """A conversation with a person. Ctrl-C at the prompt, twice, or Ctrl-D ends it."""
    commands, leaving = Commands(chat), False
    while True:
        try:
            text = keyboard.message()
        except EOFError:
            return
        except KeyboardInterrupt:
            if leaving:
                return
            leaving = True
            chat.view.note("Ctrl-C again, or Ctrl-D, leaves")
            continue
        leaving = False
        try:
            with silent_keyboard():
                _handle(chat, commands, text)
        except Leave:
            return
        except KeyboardInterrupt:
            chat.view.note("stopped")
        except HeadgateError as error:
            console.print(Text(f"error: {printable(str(error))}{_advice(error)}", style="red"))


def follow_script(chat: Chat, lines: Iterable[str]) -> None:
    """Answer one message per line; one that ends in a backslash goes on in the next.

    Raises:
        HeadgateError: the first thing that goes wrong.
    """
    commands = Commands(chat)
    with suppress(Leave):
        for text in _joined(lines):
            _handle(chat, commands, text)


def _handle(chat: Chat, commands: Commands, text: str) -> None:
    if text.strip() and not commands.run(text):
        chat.say(text.strip())


def _joined(lines: Iterable[str]) -> Iterator[str]:
    held = ""
    for line in lines:
        line = line.removesuffix("\n")
        if line.endswith("\\"):
            held += f"{line[:-1]}\n"
            continue
        yield held + line
        held = ""
    if held:
        yield held


def _greeting(chat: Chat) -> str:
    engine = chat.assistant.engine
    lossy = "; ".join(engine.lossy) or "none"
    count = len(chat.tools.tools)
    tools = f", {count} tool{'s' if count > 1 else ''}" if count else ""
    return (
        f"{chat.assistant.name}: context {engine.context} tokens, lossy: {lossy}{tools}. "
        "/help lists commands, Ctrl-D leaves."
    )


def _advice(error: HeadgateError) -> str:
    if isinstance(error, PromptTooLong):
        return "; /undo takes the last question back, /clear begins anew"
    return ""
