"""Questions, calls, consent and Ctrl-C, with the demo model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from headgate.assistant import Assistant
from headgate.chat import Content
from headgate.engine import Sampling
from headgate.errors import PromptTooLong, UsageError
from headgate.terminal import Chat, ChatOptions, LocalTool, Toolbox
from headgate.terminal.chat import DECLINED, INTERRUPTED
from headgate.terminal.commands import Commands, Leave
from headgate.terminal.conversation import NOT_RUN
from tests.server.conftest import record_tickets
from tests.server.samples import ANSWER, ASK_BOTH, ENDLESS, PARIS, QUESTION, WEATHER
from tests.terminal.parts import Person, Screen

RESULT = '{"ok": true, "id": "RGABz"}'
REPLY = "Done. The reference is RGABz."


class Weather:
    """A tool that remembers its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[dict[str, Any]] = []
        self.error = error

    def run(self, arguments: dict[str, Any]) -> str:
        self.calls.append(arguments)
        if self.error is not None:
            raise self.error
        return RESULT

    @property
    def box(self) -> Toolbox:
        return Toolbox([LocalTool(WEATHER, "here", self.run)])


def new_chat(assistant: Assistant, person: Person, weather: Weather | None = None) -> Chat:
    return Chat(assistant, weather.box if weather else Toolbox(), Screen(), person)


def shown(chat: Chat) -> Screen:
    assert isinstance(chat.view, Screen)
    return chat.view


def results(chat: Chat) -> list[str]:
    return [m["content"] for m in chat.conversation.messages if m["role"] == "tool"]


def test_a_conversation_grows_and_its_beginning_is_not_processed_again(
    assistant: Assistant,
) -> None:
    chat = Chat(assistant, Toolbox(), Screen(), Person(), system="Be brief. " * 30)
    cached, processed = [], []
    for _ in range(4):
        chat.say(QUESTION)
        assert chat.figures is not None
        cached.append(chat.figures.cached)
        processed.append(chat.figures.prompt - chat.figures.cached)
    assert [m["role"] for m in chat.conversation.messages] == ["user", "assistant"] * 4
    assert chat.conversation.messages[1]["content"] == ANSWER == shown(chat).content[: len(ANSWER)]
    assert cached == sorted(cached) and cached[0] == 0 and cached[1] > 0 and cached[-1] > cached[1]
    assert max(processed[1:]) < processed[0]


def test_a_call_runs_after_a_yes_and_only_then(assistant: Assistant) -> None:
    weather, person = Weather(), Person(["yes"])
    chat = new_chat(assistant, person, weather)
    chat.say(PARIS)
    assert person.asked == ['get_weather(city="Paris")'] and weather.calls == [{"city": "Paris"}]
    roles = [m["role"] for m in chat.conversation.messages]
    assert roles == ["user", "assistant", "tool", "assistant"] and results(chat) == [RESULT]
    assert chat.conversation.messages[-1]["content"] == REPLY == shown(chat).content
    call, answer = chat.conversation.messages[1]["tool_calls"][0], chat.conversation.messages[2]
    assert call["id"] == answer["tool_call_id"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}


def test_a_declined_call_does_not_run_and_the_model_is_told(assistant: Assistant) -> None:
    weather, person = Weather(), Person(["no"])
    chat = new_chat(assistant, person, weather)
    chat.say(PARIS)
    assert weather.calls == [] and results(chat) == [DECLINED] and len(person.asked) == 1


def test_always_is_for_this_function_and_every_later_call(assistant: Assistant) -> None:
    weather, person = Weather(), Person(["always"])
    chat = new_chat(assistant, person, weather)
    chat.say(ASK_BOTH[0]["content"])
    chat.say(PARIS)
    assert len(person.asked) == 1
    assert [call["city"] for call in weather.calls] == ["Paris", "Madrid", "Paris"]


def test_stopping_at_the_question_runs_nothing_and_leaves_no_call_open(
    assistant: Assistant,
) -> None:
    weather, person = Weather(), Person(["stop"])
    chat = new_chat(assistant, person, weather)
    chat.say(ASK_BOTH[0]["content"])
    assert weather.calls == [] and len(person.asked) == 1 and results(chat) == [NOT_RUN, NOT_RUN]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such\ncity"), "error: ValueError: no such city"),
        (SystemExit(3), "error: SystemExit: 3"),
    ],
)
def test_what_a_function_raises_is_told_to_the_model(
    assistant: Assistant, error: BaseException, text: str
) -> None:
    # The demo calls again after an error in this form; that is declined.
    chat = new_chat(assistant, Person(["yes", "no", "no"]), Weather(error))
    chat.say(PARIS)
    assert results(chat)[0] == text


def test_ctrl_c_in_a_function_ends_it_and_the_answer(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person(["yes"]), Weather(KeyboardInterrupt()))
    chat.say(PARIS)
    assert results(chat) == [INTERRUPTED] and shown(chat).content == ""


def test_results_of_declarations_are_typed_by_hand(assistant: Assistant) -> None:
    person = Person(results=[RESULT])
    chat = Chat(assistant, Toolbox([LocalTool(WEATHER, "tools.json")]), Screen(), person)
    chat.say(PARIS)
    assert shown(chat).content == REPLY and person.asked == ['get_weather(city="Paris")']


def test_a_function_that_does_not_exist_is_not_asked_about(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person(), Weather())
    chat.tools.get = lambda name: None  # type: ignore[method-assign]
    with contextlib.suppress(PromptTooLong):  # the demo may call again and again
        chat.say(PARIS)
    assert set(results(chat)) == {"error: there is no function named get_weather"}


def test_ctrl_c_stops_the_answer_and_keeps_what_there_is(assistant: Assistant) -> None:
    tickets = record_tickets(assistant)
    before, pieces = signal.getsignal(signal.SIGINT), 0

    def press(event: object) -> None:
        nonlocal pieces
        pieces += isinstance(event, Content)
        if pieces == 5:
            os.kill(os.getpid(), signal.SIGINT)

    endless = Sampling(logit_bias={int(token): bias for token, bias in ENDLESS.items()})
    screen = Screen(press)
    chat = Chat(assistant, Toolbox(), screen, Person(), ChatOptions(endless))
    chat.say(QUESTION)
    (ticket,) = tickets
    last = list(ticket)[-1]  # it ends, although nothing in it would have ended it
    assert last.figures.finish_reason == "cancelled"  # type: ignore[union-attr]
    assert last.figures.generated_tokens < 500  # type: ignore[union-attr]
    assert screen.notes == ["stopped"] and signal.getsignal(signal.SIGINT) is before
    assert chat.conversation.messages[-1] == {"role": "assistant", "content": screen.content}
    screen.on_event, chat.options = (lambda event: None), ChatOptions()
    chat.say(QUESTION)
    assert screen.content.endswith(ANSWER)


def test_ctrl_c_before_anything_came_takes_the_question_back(assistant: Assistant) -> None:
    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    chat = new_chat(assistant, Person())
    chat.view.begin = press  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        chat.say(QUESTION)
    assert chat.conversation.messages == []
    chat.view = Screen()
    assert chat.retry() and shown(chat).content == ANSWER


def test_a_question_without_an_answer_is_taken_back(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person())
    with pytest.raises(PromptTooLong):
        chat.say("very long " * 1000)
    assert chat.conversation.messages == []
    chat.say(QUESTION)
    assert shown(chat).content == ANSWER


def test_an_answer_at_its_limit_says_so(assistant: Assistant) -> None:
    chat = Chat(assistant, Toolbox(), Screen(), Person(), ChatOptions(max_tokens=2))
    chat.say(QUESTION)
    assert shown(chat).notes == ["cut: the answer has reached its limit"]


def test_retry_and_undo(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person())
    commands = Commands(chat)
    for command in ("/retry", "/undo"):
        with pytest.raises(UsageError, match="there is no question"):
            commands.run(command)
    chat.say(QUESTION)
    first = list(chat.conversation.messages)
    assert commands.run("/retry") and chat.conversation.messages == first
    assert commands.run("/undo") and chat.conversation.messages == []


def test_system_think_and_reasoning(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person())
    commands = Commands(chat)
    assert commands.run("/system Be brief.\nAlways.")
    assert chat.conversation.system == "Be brief.\nAlways."
    assert commands.run("/system -") and chat.conversation.system == ""
    assert commands.run("/think on")
    chat.say(QUESTION)
    assert chat.conversation.messages[-1]["content"] == ANSWER
    assert chat.reasoning and chat.conversation.messages[-1]["reasoning_content"] == chat.reasoning
    commands.run("/reasoning")
    assert shown(chat).notes[-1] == chat.reasoning.strip()
    commands.run("/think off")
    chat.say(QUESTION)
    assert chat.reasoning == ""
    with pytest.raises(UsageError, match="on or off"):
        commands.run("/think hard")


def test_save_and_load_round_trip(assistant: Assistant, tmp_path: Path) -> None:
    chat = new_chat(assistant, Person(["yes"]), Weather())
    commands = Commands(chat)
    commands.run("/system Be brief.")
    chat.say(PARIS)
    messages, path = list(chat.conversation.messages), tmp_path / "saved chat.json"
    assert commands.run(f"/save {path}")
    saved = json.loads(path.read_text())
    assert saved["messages"] == [{"role": "system", "content": "Be brief."}, *messages]
    assert saved["tools"] == [WEATHER] and saved["model"] == "demo"
    assert path.stat().st_mode & 0o777 == 0o600
    commands.run("/clear")
    commands.run("/system other")
    commands.run(f"/load {path}")
    assert (chat.conversation.system, chat.conversation.messages) == ("Be brief.", messages)
    chat.say(QUESTION)  # and it can go on
    assert chat.conversation.messages[-1]["role"] == "assistant"
    commands.run(f"/save {path}")  # its own file
    assert len(json.loads(path.read_text())["messages"]) == len(messages) + 3


def test_save_does_not_overwrite_without_asking(assistant: Assistant, tmp_path: Path) -> None:
    path, person = tmp_path / "mine.txt", Person()
    path.write_text("mine")
    commands = Commands(new_chat(assistant, person))
    with pytest.raises(UsageError, match="exists; nothing was written"):
        commands.run(f"/save {path}")
    assert path.read_text() == "mine" and person.asked == [f"overwrite {path}?"]
    person.confirms = True
    commands.run(f"/save {path}")
    assert json.loads(path.read_text())["messages"] == []
    for bad in (tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(UsageError, match="cannot write"):
            commands.run(f"/save {bad}")
    with pytest.raises(UsageError, match="cannot have that character"):
        commands.run("/load a\0b")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_stats_tools_and_help_are_tables(assistant: Assistant) -> None:
    chat = new_chat(assistant, Person(), Weather())
    commands = Commands(chat)
    chat.say(QUESTION)
    for command in ("/stats", "/tools", "/help"):
        assert commands.run(command)
    assert len(shown(chat).printed) == 3


def test_only_words_behind_a_slash_are_commands(assistant: Assistant) -> None:
    commands = Commands(new_chat(assistant, Person()))
    for text in ("hello", "/etc/hosts", " /help", "/", "a /help"):
        assert not commands.run(text)
    with pytest.raises(UsageError, match="there is no command /hlep"):
        commands.run("/hlep me")
    with pytest.raises(UsageError, match="takes nothing"):
        commands.run("/clear now")
    with pytest.raises(UsageError, match="name of a file"):
        commands.run("/save")
    with pytest.raises(Leave):
        commands.run("/exit")
