"""What a person types, through prompt_toolkit."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from headgate.terminal.chat import Consent
from headgate.terminal.keyboard import Keyboard, Nobody, open_history

CTRL_C, CTRL_D, ALT_ENTER = "\x03", "\x04", "\x1b\r"


class Typist:
    def __init__(self, pipe: PipeInput) -> None:
        self.pipe, self.out = pipe, StringIO()
        self.history = InMemoryHistory()
        self.keyboard = Keyboard(
            Console(file=self.out, width=20),
            ["/save", "/stats"],
            history=self.history,
            input=pipe,
            output=DummyOutput(),
        )

    def message(self, keys: str) -> str:
        self.pipe.send_text(keys)
        return self.keyboard.message()

    def consent(self, keys: str) -> Consent:
        self.pipe.send_text(keys)
        return self.keyboard.consent('f(x="1")', "f")


@pytest.fixture
def typist() -> Iterator[Typist]:
    with create_pipe_input() as pipe:
        yield Typist(pipe)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("hello\r", "hello"),
        ("one\\\rtwo\r", "one\ntwo"),
        (f"one{ALT_ENTER}two\r", "one\ntwo"),
        ("\x1b[200~pasted\nin lines\n\x1b[201~\r", "pasted\nin lines\n"),
    ],
)
def test_messages(typist: Typist, keys: str, message: str) -> None:
    assert typist.message(keys) == message


def test_ctrl_c_and_ctrl_d_at_the_prompt(typist: Typist) -> None:
    with pytest.raises(KeyboardInterrupt):
        typist.message(f"half{CTRL_C}")
    with pytest.raises(EOFError):
        typist.message(CTRL_D)


def test_earlier_messages_come_back(typist: Typist) -> None:
    typist.message("first\r")
    assert typist.message("\x1b[A\r") == "first"


@pytest.mark.parametrize(
    ("keys", "consent"),
    [
        ("y\r", "yes"),
        ("YES \r", "yes"),
        ("a\r", "always"),
        ("n\r", "no"),
        ("\r", "no"),
        (CTRL_D, "no"),
        (CTRL_C, "stop"),
    ],
)
def test_consent_is_given_only_by_name(typist: Typist, keys: str, consent: str) -> None:
    assert typist.consent(keys) == consent
    assert typist.out.getvalue() == 'run f(x="1")?\n'
    assert list(typist.history.get_strings()) == []


def test_what_was_typed_before_a_question_does_not_answer_it(typist: Typist) -> None:
    assert typist.message("hello\ry\r") == "hello"
    assert typist.consent("n\r") == "no"


def test_a_call_is_shown_whole_however_long(typist: Typist) -> None:
    typist.pipe.send_text("n\r")
    call = "f(" + "x" * 5000 + ")"
    typist.keyboard.consent(call, "f")
    assert typist.out.getvalue() == f"run {call}?\n"


def test_results_by_hand_and_confirmations(typist: Typist) -> None:
    for keys, result in (("42\r", "42"), ("\r", ""), (CTRL_C, None)):
        typist.pipe.send_text(keys)
        assert typist.keyboard.result("f()") == result
    for keys, good in (("y\r", True), ("\r", False), ("sure\r", False), (CTRL_C, False)):
        typist.pipe.send_text(keys)
        assert typist.keyboard.confirm("overwrite?") is good


def test_the_history_is_the_users_own(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "chat_history"
    history = open_history(path)
    assert isinstance(history, FileHistory) and path.stat().st_mode & 0o777 == 0o600
    history.append_string("secret\nof two lines")
    path.chmod(0o644)
    assert list(open_history(path).load_history_strings()) == ["secret\nof two lines"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert isinstance(open_history(tmp_path / "cache" / "chat_history" / "x"), InMemoryHistory)


def test_where_nobody_can_be_asked_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert Nobody().consent("f()", "f") == "no" and not Nobody().confirm("overwrite?")
    assert Nobody().result("f()") is None
    assert "--allow f runs it without asking" in capsys.readouterr().err
