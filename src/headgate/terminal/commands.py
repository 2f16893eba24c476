"""What begins with a slash."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from headgate.errors import UsageError
from headgate.terminal.chat import Chat
from headgate.terminal.figures import stats_rows
from headgate.terminal.text import one_line, printable

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)


class Leave(Exception):
    """The user wants to go."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        usage: what follows its name.
        does: for ``/help``.
        run: does it; gets what follows its name.
    """

    usage: str
    does: str
    run: Callable[[Commands, str], None]


class Commands:
    """The commands of one conversation."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._own_files: set[Path] = set()  # which /save may write again

    def run(self, text: str) -> bool:
        """Whether ``text`` is a command, which has then been carried out.

        Raises:
            Leave: it was ``/exit``.
            HeadgateError: it cannot be carried out; the conversation is as before.
        """
        match = _COMMAND.fullmatch(text.rstrip())
        if match is None:
            return False
        command = COMMANDS.get(match[1])
        if command is None:
            raise UsageError(f"there is no command /{match[1]}; /help lists those that there are")
        rest = (match[2] or "").strip()
        if rest and not command.usage:
            raise UsageError(f"/{match[1]} takes nothing behind it")
        command.run(self, rest)
        return True

    def _help(self, _: str) -> None:
        rows = [(f"/{name} {command.usage}".strip(), command.does) for name, command in _listed()]
        self._table(rows)
        self._chat.view.note(
            "Alt+Enter or a backslash at the end of a line begins another line. Ctrl-C stops an "
            "answer; at the prompt, twice, or Ctrl-D, leaves. A space before a slash sends it."
        )

    def _tools(self, _: str) -> None:
        tools = self._chat.tools
        if not tools.tools:
            self._chat.view.note("no tools: --tools FILE.py or --mcp COMMAND gives some")
        rows = []
        for tool in tools.tools:
            if tool.run is None:
                how = "its results are typed by hand"
            else:
                how = "runs without asking" if tools.allowed(tool.name) else "asks before it runs"
            says = f"{one_line(tool.description, 300)}\n" if tool.description else ""
            rows.append((tool.name, f"{says}{how}; from {tool.source}"))
        self._table(rows)

    def _system(self, text: str) -> None:
        conversation = self._chat.conversation
        if text:
            conversation.system = "" if text == "-" else text
        self._chat.view.note(f"system message: {conversation.system or 'none'}")

    def _save(self, name: str) -> None:
        path = _path(name)
        known = path.resolve() in self._own_files
        if path.exists() and not known:
            if path.is_dir():
                raise UsageError(f"cannot write {path}: it is a folder")
            if not self._chat.asker.confirm(f"overwrite {path}?"):
                raise UsageError(f"{path} exists; nothing was written")
        more: dict[str, Any] = {"model": self._chat.assistant.name}
        if self._chat.tools.tools:
            more["tools"] = self._chat.tools.declarations
        if self._chat.thinking is not None:
            more["chat_template_kwargs"] = {"enable_thinking": self._chat.thinking}
        self._chat.conversation.save(path, **more)
        self._own_files.add(path.resolve())
        self._chat.view.note(f"{len(self._chat.conversation.messages)} messages saved in {path}")

    def _load(self, name: str) -> None:
        path = _path(name)
        self._chat.conversation.load(path)
        self._own_files.add(path.resolve())
        self._chat.view.note(f"{len(self._chat.conversation.messages)} messages from {path}")

    def _stats(self, _: str) -> None:
        self._table(stats_rows(self._chat.assistant, self._chat.figures))

    def _clear(self, _: str) -> None:
        self._chat.conversation.clear()
        self._chat.view.note("conversation cleared")

    def _retry(self, _: str) -> None:
        if not self._chat.retry():
            raise UsageError("there is no question to answer again")

    def _undo(self, _: str) -> None:
        text = self._chat.conversation.undo()
        if text is None:
            raise UsageError("there is no question to take back")
        self._chat.view.note(f"taken back: {one_line(text)}")

    def _think(self, word: str) -> None:
        states = {"on": True, "off": False}
        if word and word not in states:
            raise UsageError("/think takes on or off")
        if word:
            self._chat.thinking = states[word]
        names = {True: "on", False: "off", None: "as the model's template has it"}
        self._chat.view.note(f"thinking: {names[self._chat.thinking]}")

    def _reasoning(self, _: str) -> None:
        self._chat.view.note(self._chat.reasoning.strip() or "the last answer has no reasoning")

    def _exit(self, _: str) -> None:
        raise Leave

    def _table(self, rows: list[tuple[str, str]]) -> None:
        if not rows:
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold")
        table.add_column(overflow="fold", ratio=1)
        for name, text in rows:
            table.add_row(Text(printable(name), style="bold"), Text(printable(text)))
        self._chat.view.print(table)


def _path(name: str) -> Path:
    if not name:
        raise UsageError("the name of a file is missing")
    if "\0" in name:
        raise UsageError("a file's name cannot have that character")
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody
        return Path(name)


COMMANDS: dict[str, Command] = {
    "help": Command("", "this list", Commands._help),
    "tools": Command("", "functions that the model may call", Commands._tools),
    "system": Command("TEXT", "set the system message; - for none", Commands._system),
    "think": Command("on|off", "whether the model reasons first", Commands._think),
    "reasoning": Command("", "the reasoning of the last answer", Commands._reasoning),
    "retry": Command("", "answer the last question again", Commands._retry),
    "undo": Command("", "take the last question and its answer back", Commands._undo),
    "clear": Command("", "begin anew, with the same system message", Commands._clear),
    "save": Command("FILE", "write the conversation as JSON", Commands._save),
    "load": Command("FILE", "replace the conversation with a saved one", Commands._load),
    "stats": Command("", "what the last answer took", Commands._stats),
    "exit": Command("", "leave", Commands._exit),
    "quit": Command("", "leave", Commands._exit),
}


def _listed() -> list[tuple[str, Command]]:
    return [(name, command) for name, command in COMMANDS.items() if name != "quit"]
