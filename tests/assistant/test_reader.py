"""From tokens to the events of an answer."""

from __future__ import annotations

import pytest

from headgate.assistant import AnswerEvent, Failed, Finished, Logprobs, Progress
from headgate.assistant.reader import AnswerReader, ReaderOptions
from headgate.chat import Tokenizer
from headgate.chat.output import CallEnd, Content, Reasoning
from headgate.engine import ticket
from headgate.engine.turn import Step
from headgate.errors import ShuttingDown, StoreError
from headgate.store import Store
from tests.conftest import DemoStore

TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}},
}
CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"


@pytest.fixture(scope="module")
def tokenizer(demo_store: DemoStore) -> Tokenizer:
    return Tokenizer.from_bytes(Store.open(demo_store()).read_file("tokenizer.json"))


def read(
    tokenizer: Tokenizer, text: str, options: ReaderOptions, reason: str = "stop"
) -> list[AnswerEvent]:
    """All events of an answer whose tokens arrive one at a time."""
    reader = AnswerReader(tokenizer, options)
    events: list[AnswerEvent] = []
    for token in tokenizer.encode(text):
        events += reader.push(ticket.Tokens([Step(token, -0.5, ((token, -0.5),))]))
        if reader.done:
            return events
    figures = ticket.TurnFigures(finish_reason=reason, prompt_tokens=3)  # type: ignore[arg-type]
    return events + reader.push(ticket.Finished(figures))


def content(events: list[AnswerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def finished(events: list[AnswerEvent]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_reasoning_is_told_from_content_and_counted(tokenizer: Tokenizer) -> None:
    options = ReaderOptions(thinking=True)
    events = read(tokenizer, "I wonder.\n</think>\n\nOslo.", options)
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == "I wonder."
    assert content(events) == "Oslo."
    usage = finished(events).usage
    reasoned = len(tokenizer.encode("I wonder.\n</think>"))
    assert (usage.reasoning, usage.completion) == (
        reasoned,
        len(tokenizer.encode("I wonder.\n</think>\n\nOslo.")),
    )


def test_stop_strings_end_the_content_but_not_the_reasoning(tokenizer: Tokenizer) -> None:
    options = ReaderOptions(thinking=True, stop=("is",))
    events = read(tokenizer, "It is so.\n</think>\n\nOslo is it", options)
    assert content(events) == "Oslo"
    assert finished(events).reason == "stop" and finished(events).stop == "is"


def test_log_probabilities_end_where_the_text_does(tokenizer: Tokenizer) -> None:
    options = ReaderOptions(parse=False, stop=("Norway",), logprobs=True)
    events = read(tokenizer, "Oslo is in Norway.", options)
    tokens = [t.text for event in events if isinstance(event, Logprobs) for t in event.tokens]
    assert "".join(tokens) == content(events) == "Oslo is in "


def test_every_token_has_a_log_probability_if_nothing_cuts_the_text(tokenizer: Tokenizer) -> None:
    options = ReaderOptions(thinking=True, tools=[TOOL], logprobs=True)
    text = "Hm.\n</think>\n\n" + CALL
    events = read(tokenizer, text, options)
    tokens = [t.token for event in events if isinstance(event, Logprobs) for t in event.tokens]
    assert tokens == tokenizer.encode(text)


def test_without_parallel_calls_the_answer_ends_after_its_first(tokenizer: Tokenizer) -> None:
    options = ReaderOptions(tools=[TOOL], one_call=True)
    events = read(tokenizer, f"{CALL}\n{CALL}", options)
    assert len([event for event in events if isinstance(event, CallEnd)]) == 1
    assert finished(events).reason == "tool_calls"
    assert len([e for e in read(tokenizer, f"{CALL}\n{CALL}", ReaderOptions(tools=[TOOL]))
                if isinstance(e, CallEnd)]) == 2  # fmt: skip


def test_where_nothing_may_be_called_a_call_is_content(tokenizer: Tokenizer) -> None:
    events = read(tokenizer, CALL, ReaderOptions())
    assert content(events) == CALL and finished(events).reason == "stop"


def test_an_answer_cut_by_its_length_says_so_even_behind_a_call(tokenizer: Tokenizer) -> None:
    events = read(tokenizer, CALL, ReaderOptions(tools=[TOOL]), reason="length")
    assert finished(events).reason == "length"


def test_cached_tokens_and_progress_are_passed_on(tokenizer: Tokenizer) -> None:
    reader = AnswerReader(tokenizer, ReaderOptions(prompt=[1, 2, 3]))
    assert reader.push(ticket.Queued(2)) == [Progress()]
    assert reader.push(ticket.PromptProgress(2, 3, 1)) == [Progress(2, 3, 1)]
    figures = ticket.TurnFigures(finish_reason="stop", prompt_tokens=3, cached_tokens=1)
    (last,) = reader.push(ticket.Finished(figures))
    assert isinstance(last, Finished) and (last.usage.prompt, last.usage.cached) == (3, 1)


def test_errors_and_shutdown_end_an_answer(tokenizer: Tokenizer) -> None:
    error = StoreError("gone")
    reader = AnswerReader(tokenizer, ReaderOptions())
    assert reader.push(ticket.Failed(error)) == [Failed(error)] and reader.done
    reader = AnswerReader(tokenizer, ReaderOptions())
    (last,) = reader.push(ticket.Finished(ticket.TurnFigures(finish_reason="cancelled")))
    assert isinstance(last, Failed) and isinstance(last.error, ShuttingDown)
