"""Scorers against answers made by hand."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from headgate.chat import ToolCall
from headgate.evals.failures import Failure
from headgate.evals.score import loops, same, score_calls, score_json, score_words
from headgate.evals.target import Answer, FinishReason

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("send", "read")
]
SEND = ToolCall("send", {"to": "Ada", "count": 2, "range": {"low": 1, "high": 5}})
READ = ToolCall("read", {"path": 'C:\\a "b"\nc', "tags": ["x", "y"]})
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "count": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["m", "km"]},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
VALUE = {"name": "Ada", "count": 3}


def said(
    *calls: ToolCall, text: str = "", finish: str = "stop", broken: tuple[str, ...] = ()
) -> Answer:
    reason: FinishReason = "length" if finish == "length" else "stop"
    assert finish in get_args(FinishReason)
    return Answer(text, calls, "", reason, broken)


def changed(call: ToolCall, **arguments: Any) -> ToolCall:
    return ToolCall(call.name, {**call.arguments, **arguments})


def without(call: ToolCall, *names: str) -> ToolCall:
    return ToolCall(call.name, {k: v for k, v in call.arguments.items() if k not in names})


# -- right answers


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (said(SEND), [SEND]),
        (said(SEND, text="I will send it."), [SEND]),
        (said(SEND, READ), [READ, SEND]),  # calls of a turn have no order
        (said(ToolCall("send", dict(reversed(SEND.arguments.items())))), [SEND]),
        (said(changed(SEND, count=2.0)), [SEND]),  # JSON knows one type of number
        (said(SEND, SEND), [SEND, SEND]),
        (said(ToolCall("read", {})), [ToolCall("read", {})]),
    ],
)
def test_right_calls(answer: Answer, wanted: list[ToolCall]) -> None:
    assert score_calls(answer, wanted, TOOLS).right


def test_right_words_mention_what_they_have_to_and_call_nothing() -> None:
    assert score_words(said(text="Done. The reference is QX-1.\n"), ["QX-1"]).right
    assert score_words(said(text="I have no tool for that.")).right


@pytest.mark.parametrize(
    "text",
    [
        '{"count": 3, "name": "Ada"}',
        '```json\n{"name": "Ada", "count": 3}\n```',
        '\n{"name":"Ada","count":3.0}',
    ],
)
def test_right_document_may_be_fenced_and_in_any_order(text: str) -> None:
    verdict = score_json(said(text=text), SCHEMA, VALUE)
    assert verdict.right
    assert verdict.also == {"equal": True}


def test_valid_document_with_other_facts_is_right_but_not_equal() -> None:
    verdict = score_json(said(text='{"name": "Bob", "count": 3}'), SCHEMA, VALUE)
    assert verdict.right
    assert verdict.also == {"equal": False}


def test_equality_tells_types_apart() -> None:
    assert not same(True, 1)
    assert not same("1", 1)
    assert not same(None, "null")
    assert not same({"a": [1, False]}, {"a": [1, 0]})
    assert same({"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0})


# -- wrong calls, at least five of each class

LOOP = "the same words again and " * 12
WRONG_CALLS: dict[Failure, list[Answer]] = {
    Failure.REPETITION: [
        said(SEND, SEND),
        said(SEND, SEND, SEND),
        said(text=LOOP, finish="length"),
        said(text="<tool_call>\n<function=send>\n" + "aB" * 60, finish="length"),
        said(ToolCall("read", {}), ToolCall("read", {}), finish="length"),
        said(broken=('{"to": "' + "la la " * 50,), finish="length"),
    ],
    Failure.TOO_LONG: [
        said(text="I wonder what to do, for there are so many ways.", finish="length"),
        said(text="<tool_call>\n<function=send>\n<parameter=to>\nAda", finish="length"),
        said(ToolCall("read", {}), text="and then", finish="length"),
        said(finish="length"),
        said(broken=('{"to": "Ada", "cou',), finish="length"),
    ],
    Failure.EARLY_STOP: [
        said(),
        said(text="  \n"),
        said(text="<tool_call>\n<function=send>\n<parameter=to>\nAda"),
        said(text='<tool_call>\n{"name": "send", "arguments": {'),
        said(broken=('{"to": "Ada", "count"',)),
        said(broken=('{"to": "Ad',)),
    ],
    Failure.MALFORMED: [
        said(text="<tool_call>\nsend(to='Ada')\n</tool_call>"),
        said(text='<tool_call>\n{"name": send}\n</tool_call>'),
        said(text="</tool_call>"),
        said(text='I call {"name": "send", "arguments": {"to": "Ada"}}'),
        said(broken=("to=Ada",)),
        said(broken=('["Ada", 2]',)),
        said(changed(SEND, range='{"low": 1, "high": 5')),  # a brace is missing
        said(without(changed(SEND, range='{"low": 1, "count": 2'), "count")),
    ],
    Failure.REFUSAL: [
        said(text="I have no tool for that."),
        said(text="I cannot do this."),
        said(text="To whom shall I send it?"),
        said(text="Sent."),
        said(text="send Ada 2"),
    ],
    Failure.NEEDLESS_CALL: [
        said(SEND, READ),
        said(READ, SEND),
        said(SEND, ToolCall("read", {})),
        said(SEND, ToolCall("delete", {"all": True})),
        said(SEND, changed(SEND, to="Bob")),
    ],
    Failure.WRONG_FUNCTION: [
        said(READ),
        said(ToolCall("read", SEND.arguments)),
        said(ToolCall("sends", SEND.arguments)),
        said(ToolCall("Send", SEND.arguments)),
        said(ToolCall("", SEND.arguments)),
    ],
    Failure.MISSING_ARGUMENT: [
        said(without(SEND, "to")),
        said(without(SEND, "count", "range")),
        said(ToolCall("send", {})),
        said(changed(SEND, range={"low": 1})),
        said(changed(without(SEND, "to"), cc="Ada")),
    ],
    Failure.INVENTED_ARGUMENT: [
        said(changed(SEND, cc="Bob")),
        said(changed(SEND, subject=None)),
        said(changed(SEND, To="Ada")),
        said(changed(SEND, range={"low": 1, "high": 5, "step": 1})),
        said(changed(SEND, cc="Bob", bcc="Carla")),
    ],
    Failure.WRONG_TYPE: [
        said(changed(SEND, count="2")),
        said(changed(SEND, count=True)),
        said(changed(SEND, to=["Ada"])),
        said(changed(SEND, to=None)),
        said(changed(SEND, range=[1, 5])),
        said(changed(SEND, range={"low": "1", "high": 5})),
    ],
    Failure.WRONG_QUOTING: [
        said(changed(SEND, to='"Ada"')),
        said(changed(SEND, to="'Ada'")),
        said(changed(SEND, to="Ada\n")),
        said(changed(SEND, to="\\u0041da")),
        said(changed(SEND, to="«Ada»")),
    ],
    Failure.WRONG_VALUE: [
        said(changed(SEND, to="Bob")),
        said(changed(SEND, count=3)),
        said(changed(SEND, count=-2)),
        said(changed(SEND, to="ada")),
        said(changed(SEND, range={"low": 1, "high": 6})),
    ],
}


@pytest.mark.parametrize(
    ("failure", "answer"), [(f, a) for f, answers in WRONG_CALLS.items() for a in answers]
)
def test_wrong_calls_by_class(failure: Failure, answer: Answer) -> None:
    verdict = score_calls(answer, [SEND], TOOLS)
    assert verdict.failure is failure, verdict
    assert verdict.why


def test_every_class_has_five_cases() -> None:
    assert set(WRONG_CALLS) == set(Failure)
    assert min(len(answers) for answers in WRONG_CALLS.values()) >= 5


@pytest.mark.parametrize(
    "path", ['C:\\\\a "b"\nc', 'C:\\a \\"b\\"\nc', 'C:\\a "b"\\nc', "C:\\a 'b'\nc", 'C:\\a "b" c']
)
def test_escapes_that_went_wrong_are_wrong_quoting(path: str) -> None:
    assert score_calls(said(changed(READ, path=path)), [READ]).failure is Failure.WRONG_QUOTING


def test_some_calls_of_several_are_an_early_stop() -> None:
    assert score_calls(said(SEND), [SEND, READ]).failure is Failure.EARLY_STOP
    assert score_calls(said(READ), [SEND, READ, SEND]).failure is Failure.EARLY_STOP


def test_one_wrong_call_of_several_is_judged_by_its_own_fault() -> None:
    wrong = said(changed(SEND, count="2"), READ)
    assert score_calls(wrong, [SEND, READ]).failure is Failure.WRONG_TYPE


# -- words


@pytest.mark.parametrize(
    ("failure", "answer"),
    [
        (Failure.NEEDLESS_CALL, said(SEND)),
        (Failure.NEEDLESS_CALL, said(SEND, text="QX-1 {a}")),
        (Failure.EARLY_STOP, said()),
        (Failure.EARLY_STOP, said(text="<tool_call>")),
        (Failure.MALFORMED, said(text="</function> QX-1 {a}")),
        (Failure.REPETITION, said(text=LOOP, finish="length")),
        (Failure.TOO_LONG, said(text="QX-1 {a} and I can tell you more", finish="length")),
        (Failure.WRONG_QUOTING, said(text="The reference is Q X-1 and {a}")),
        (Failure.WRONG_QUOTING, said(text='QX\\"-1 {a}')),
        (Failure.WRONG_VALUE, said(text="The reference is QX-2 and {a}")),
        (Failure.WRONG_VALUE, said(text="Done.")),
    ],
)
def test_wrong_words_by_class(failure: Failure, answer: Answer) -> None:
    assert score_words(answer, ["QX-1", "{a}"]).failure is failure


# -- documents

WRONG_JSON: dict[Failure, list[str]] = {
    Failure.MALFORMED: ["{name: 'Ada'}", '{"name": "Ada",, "count": 3}', '{"count": NaN}',
                        'Here: {"name": "Ada", "count": 3}', '{"name": "Ada" "count": 3}'],
    Failure.EARLY_STOP: ["", '{"name": "Ada", "count"', '{"name": "Ad', "{",
                         '{"name": "Ada", "count": 3'],
    Failure.REFUSAL: ["I cannot.", "The name is Ada.", "No", "Ada, three", "name: Ada"],
    Failure.MISSING_ARGUMENT: ["{}", '{"name": "Ada"}', '{"count": 3}', '{"unit": "m"}',
                               '{"count": 3, "code": "AB"}'],
    Failure.INVENTED_ARGUMENT: [f'{{"name": "Ada", "count": 3, "{x}": 1}}' for x in "abcde"],
    Failure.WRONG_TYPE: ['{"name": 1, "count": 3}', '{"name": "Ada", "count": "3"}', "[]",
                         '{"name": null, "count": 3}', '{"name": "Ada", "count": true}',
                         '{"name": "Ada", "count": 3.5}'],
    Failure.WRONG_VALUE: ['{"name": "", "count": 3}', '{"name": "Ada", "count": 10}',
                          '{"name": "Ada", "count": -1}',
                          '{"name": "Ada", "count": 3, "unit": "cm"}',
                          '{"name": "Ada", "count": 3, "code": "ab"}'],
}  # fmt: skip


@pytest.mark.parametrize(("failure", "text"), [(f, t) for f, ts in WRONG_JSON.items() for t in ts])
def test_wrong_documents_by_class(failure: Failure, text: str) -> None:
    verdict = score_json(said(text=text), SCHEMA, VALUE)
    assert verdict.failure is failure, verdict
    assert verdict.also == {"equal": False}


@pytest.mark.parametrize("code", ['"AB', "AB\\n", "«AB»", "A B", "'AB'"])
def test_pattern_missed_by_quotes_is_wrong_quoting(code: str) -> None:
    import json

    wanted = {**VALUE, "code": "AB"}
    verdict = score_json(said(text=json.dumps({**VALUE, "code": code})), SCHEMA, wanted)
    assert verdict.failure is Failure.WRONG_QUOTING


def test_endless_document_is_a_repetition_and_a_long_one_too_long() -> None:
    endless = '{"name": "' + "na" * 200
    assert score_json(said(text=endless, finish="length"), SCHEMA, VALUE).failure is (
        Failure.REPETITION
    )
    long = '{"name": "a text that goes on without saying anything twice'
    assert score_json(said(text=long, finish="length"), SCHEMA, VALUE).failure is Failure.TOO_LONG


def test_loops_are_found_and_ordinary_text_is_none() -> None:
    assert loops("abc " * 10)
    assert loops("Well. " + "no " * 20)
    assert loops("ψσηρ ψσηρ ψσηρ ψσηρ ψσηρ ψσηρ ψσηρ ψσηρ")
    assert not loops("The quick brown fox jumps over the lazy dog.")
    assert not loops("ha ha ha")
    assert not loops('{"a": 0, "b": 0, "c": 0}')
    assert not loops("")
