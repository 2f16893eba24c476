"""What a person types: messages, and answers to questions."""

from __future__ import annotations

import os
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import NestedCompleter, PathCompleter
from prompt_toolkit.formatted_text import ANSI
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import clear_typeahead
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from rich.console import Console
from rich.text import Text

from headgate.paths import cache_folder
from headgate.terminal.chat import Consent

PROMPT, CONTINUED = "> ", "  "
FILES = ("/save", "/load")

CONSENTS: dict[str, Consent] = {
    "y": "yes",
    "yes": "yes",
    "a": "always",
    "always": "always",
    "n": "no",
    "no": "no",
    "": "no",
}


class Keyboard:
    """Reads from a terminal with line editing; decides about calls by asking.

    Args:
        console: where calls are shown before a question about them.
        commands: names to complete, with their slash.
        history: of messages; a file of the user's unless given.
        input, output: other than the process's terminal, for tests.
    """

    def __init__(
        self,
        console: Console,
        commands: Iterable[str] = (),
        *,
        history: History | None = None,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._console = console
        files = PathCompleter(expanduser=True)
        completer = {name: files if name in FILES else None for name in commands}
        self._messages: PromptSession[str] = PromptSession(
            history=open_history() if history is None else history,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation=CONTINUED,
            completer=NestedCompleter.from_nested_dict(completer),
            complete_while_typing=False,
            input=input,
            output=output,
        )
        self._questions: PromptSession[str] = PromptSession(
            history=InMemoryHistory(), input=input, output=output
        )

    def message(self) -> str:
        """The next message.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C.
        """
        return self._messages.prompt(ANSI(f"\x1b[1m{PROMPT}\x1b[0m"))

    # Questions

    def consent(self, call: str, name: str) -> Consent:
        """Whether a call may run. Nothing typed before the question answers it; anything
        but yes or always is no, Ctrl-C stops."""
        self._show(f"run {call}?")
        question = f"[y]es / [n]o / [a]lways for {name} in this session (no): "
        while True:
            typed = self._ask(question)
            if typed is None:
                return "stop"
            consent = CONSENTS.get(typed.strip().lower())
            if consent is not None:
                return consent

    def result(self, call: str) -> str | None:
        """What the user says that a call returns; None on Ctrl-C."""
        self._show(call)
        return self._ask("its result: ")

    def confirm(self, question: str) -> bool:
        """Yes or no; no on anything else."""
        return (self._ask(f"{question} [y]es / [n]o (no): ") or "").strip().lower() in ("y", "yes")

    def _show(self, call: str) -> None:
        # Not as part of the question, of which only what fits on the screen would be seen.
        self._console.print(Text(call, style="cyan"), soft_wrap=True)

    def _ask(self, question: str) -> str | None:
        self._forget_typed()
        try:
            return self._questions.prompt(question)
        except KeyboardInterrupt:
            return None
        except EOFError:
            return ""

    def _forget_typed(self) -> None:
        terminal = self._questions.app.input
        clear_typeahead(terminal)
        with suppress(OSError, ValueError, termios.error):
            if os.isatty(terminal.fileno()):
                termios.tcflush(terminal.fileno(), termios.TCIFLUSH)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        """Send; behind a backslash, go on in another line."""
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def open_history(path: Path | None = None) -> History:
    """The messages of earlier conversations, in a file that only the user can read; in
    memory where there can be no such file."""
    path = cache_folder() / "chat_history" if path is None else path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


@contextmanager
def silent_keyboard() -> Iterator[None]:
    """What is typed meanwhile is not echoed amid what is shown; the next message gets it."""
    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (OSError, ValueError, termios.error):  # no terminal
        yield
        return
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


class Nobody:
    """Answers for a person where there is none: no call runs that was not allowed."""

    def consent(self, call: str, name: str) -> Consent:
        print(
            f"headgate: {call} was not run: there is no terminal to ask in; "
            f"--allow {name} runs it without asking",
            file=sys.stderr,
        )
        return "no"

    def result(self, call: str) -> str | None:
        print(f"headgate: {call} has no result: nobody can type one", file=sys.stderr)
        return None

    def confirm(self, question: str) -> bool:
        return False
