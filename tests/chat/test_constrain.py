"""Grammars as masks over the vocabulary."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.chat import Constraint, Grammar, Vocabulary, parse_tool_calls
from headgate.errors import UsageError
from tests.chat.grammars import (
    NOW,
    RAW,
    SIZE,
    SPECIAL,
    STOPS,
    Setting,
    call,
    each_setting,
    tool,
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "format": "int64"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@each_setting
def test_json_by_schema(setting: Setting) -> None:
    grammar = Grammar.json_schema(PERSON)
    for text in (
        '{"name": "A \\"b\\"", "age": 5}',
        '{"name":"", "age":-1, "tags":["x"]}',
        '{\n  "name": "x",\n  "age": 5\n}',
    ):
        assert setting.refused_at(grammar, text) is None
    for text in (
        ' {"name": "x", "age": 5}',
        '{"name": "x", "age": 5}\n',
        '{"age": 5, "name": "x"}',
        '{"name": "x", "age": 5, "more": 1}',
        '{"name": "x"}',
        '{"name":  "x", "age": 5}',
        '{"name":\n' + " " * 25 + '"x", "age": 5}',
        "[]",
    ):
        assert setting.refused_at(grammar, text) is not None
    anything = Grammar.json_object()
    assert setting.refused_at(anything, '{"a": [1, {"b": null}]}') is None
    assert setting.refused_at(anything, "[1]") is not None


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "not an object"),
        ({"type": "strang"}, "strang"),
        ({"not": {}}, "not"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"enum": []}, "empty"),
        ({"$ref": "#/$defs/none"}, "does not exist"),
        ({"$ref": "http://127.0.0.1:9/"}, "not"),
        ({"oneOf": [{"type": "string"}, {"minLength": 3}]}, "oneOf"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"type": "number", "maximum": float("nan")}, "JSON"),
        ({"enum": ["x" * 200_000]}, "characters"),
        ({"x": {1, 2}}, "JSON"),
    ],
)
def test_schemas_that_cannot_be_honoured(schema: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Grammar.json_schema(schema)


def test_a_schema_that_nothing_satisfies_is_refused_before_the_answer() -> None:
    with pytest.raises(UsageError, match="nothing satisfies"):
        Constraint(SPECIAL.vocabulary, Grammar.json_schema({"$ref": "#"}))


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize("depth", [500, 50_000])
def test_deeply_nested_schemas_are_refused(depth: int) -> None:
    with pytest.raises(UsageError, match=r"recursion|deeply"):
        Grammar.json_schema(deep(depth))
    with pytest.raises(UsageError, match=r"recursion|deeply|cannot be used"):
        Grammar.tool_calls([tool("f", a={"type": "array", **deep(depth)})])


def test_long_chains_of_rules_do_not_overrun_a_small_stack() -> None:
    chain = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(1500)}
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d1500": {}}}
    rules = "".join(f'r{i}: "a" r{i + 1}\n' for i in range(3000))
    masks: list[Any] = []

    def work() -> None:
        lark = Grammar.lark(f'start: r0\n{rules}r3000: "b"\n')
        for grammar in (Grammar.json_schema(schema), lark):
            masks.extend([Constraint(SPECIAL.vocabulary, grammar).mask()])

    before = threading.stack_size(1 << 19)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    threading.stack_size(before)
    assert len(masks) == 2


@each_setting
@pytest.mark.parametrize("name", ["</think>", "<|im_end|>", "a<tool_call>b"])
def test_the_name_of_a_special_token_may_be_a_text(setting: Setting, name: str) -> None:
    schema = {"type": "object", "properties": {name: {"const": name}}, "required": [name]}
    grammar = Grammar.json_schema({**schema, "additionalProperties": False})
    constraint, said = Constraint(setting.vocabulary, grammar), b""
    while not constraint.finished:
        mask = constraint.mask()
        assert mask is not None
        token = next(iter(constraint.forced()), int(mask.argmax()))
        constraint.accept(token)
        said += setting.tokenizer.decode([token]).encode()
    assert json.loads(said) == {name: name}


@pytest.mark.parametrize("pattern", [r'^[^"]*$', r"^[^\\]*$", r'^(a|[^\n"\\])*$', r'^[^x"]?$'])
def test_a_class_without_quotes_allows_none(pattern: str) -> None:
    for schema, before, after in (
        ({"type": "string", "pattern": pattern}, "", ""),
        ({"patternProperties": {pattern: {}}, "additionalProperties": False}, "{", ": 1}"),
    ):
        grammar = Grammar.json_schema(schema)
        for value in ("a", "", "\t", "é", '"', "\\", '""', "b\\"):
            text = before + json.dumps(value, ensure_ascii=False) + after
            found = re.search(pattern, value) is not None
            assert (SPECIAL.refused_at(grammar, text) is None) == found, value


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [(r"^[\]^]$", "^", "a"), ("^[^]]$", "a", "]"), (r"^\[[^a]$", "[b", "[a"), ("^[a^]$", "^", "b")],
)
def test_classes_are_told_from_brackets_and_carets(pattern: str, good: str, bad: str) -> None:
    grammar = Grammar.json_schema({"type": "string", "pattern": pattern})
    assert SPECIAL.refused_at(grammar, json.dumps(good)) is None
    assert SPECIAL.refused_at(grammar, json.dumps(bad))


def test_a_declared_property_cannot_be_spelt_otherwise() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "é": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    grammar = Grammar.json_schema(schema)
    assert SPECIAL.refused_at(grammar, '{"a": 1, "é": 2, "b\\n": "x\\t"}') is None
    assert SPECIAL.refused_at(grammar, r'{"a": 1, "\u0061": "x"}')
    assert SPECIAL.refused_at(grammar, r'{"\u00e9": "x"}')
    calls = Grammar.tool_calls([tool("f", a=schema)])
    assert SPECIAL.refused_at(calls, call("f", a=r'{"a": 1, "b": "x"}')) is None
    assert SPECIAL.refused_at(calls, call("f", a=r'{"a": 1, "\u0061": "x"}'))


def test_control_characters_that_a_schema_lists_can_be_written() -> None:
    for value in ("\x00", "\x1f", "\x7f", "\t"):
        grammar = Grammar.json_schema({"enum": [value]})
        assert SPECIAL.refused_at(grammar, json.dumps(value)) is None


def test_raw_grammars() -> None:
    grammar = Grammar.regex(r"\d{2,3}|yes")
    assert SPECIAL.refused_at(grammar, "123") is None
    assert SPECIAL.refused_at(grammar, "1") == ""
    assert SPECIAL.refused_at(grammar, "no") == "no"
    call = SPECIAL.vocabulary.token("<tool_call>")
    lark = Grammar.lark(f'start: <[{call}]> "a" inner\ninner: "(" inner ")" | "x"')
    assert SPECIAL.refused_at(lark, "<tool_call>a((x))") is None
    assert SPECIAL.refused_at(lark, "<tool_call>a((x)") == ""
    for text in ("start: (", "nothing", "start: <nonsense>", "start: other", ""):
        with pytest.raises(UsageError, match="grammar cannot be used"):
            Constraint(SPECIAL.vocabulary, Grammar.lark(text))
    with pytest.raises(UsageError, match="grammar cannot be used"):
        Grammar.regex("(?=x)")


def test_grammar_begins_behind_the_reasoning() -> None:
    after = SPECIAL.tokenizer.id_of("</think>")
    grammar = Grammar.json_object()
    for gap in ("", "\n", "\n\n"):
        assert SPECIAL.refused_at(grammar, f"<b> hm {{\n</think>{gap}{{}}", after) is None
    assert SPECIAL.refused_at(grammar, "hm</think>\n\n\n{}", after) is not None
    assert SPECIAL.refused_at(grammar, "hm</think>text", after) == "text"
    calls = Grammar.tool_calls([NOW], choice="auto")
    assert SPECIAL.refused_at(calls, "<tool_call>?</think>\n\nyes", after) is None
    assert SPECIAL.refused_at(calls, "hm</think>\n\nyes <tool_call>?", after) == "?"


def test_a_finished_answer_allows_stop_tokens_only() -> None:
    constraint = Constraint(SPECIAL.vocabulary, Grammar.json_schema({"const": True}))
    ids = SPECIAL.tokenizer.encode("true")
    assert constraint.forced() == ids
    for token in ids:
        assert not constraint.finished
        constraint.accept(token)
    mask = constraint.mask()
    assert constraint.finished and mask is not None
    assert sorted(mask.nonzero()[0].tolist()) == sorted(STOPS)
    constraint.accept(STOPS[0])
    assert constraint.finished
    with pytest.raises(UsageError):
        constraint.accept(ids[0])


def test_answers_share_a_grammar_but_no_state() -> None:
    grammar = Grammar.json_object()
    one, other = (Constraint(SPECIAL.vocabulary, grammar) for _ in range(2))
    one.accept(SPECIAL.tokenizer.encode("{")[0])
    assert other.forced() != [] or other.mask() is not None
    first, second = one.mask(), other.mask()
    assert first is not None and second is not None and (first != second).any()


@pytest.mark.parametrize(
    ("data", "size", "stops"),
    [
        (b"", SIZE, STOPS),
        (b"nonsense", SIZE, STOPS),
        (b"{}", SIZE, STOPS),
        (b"[]", SIZE, STOPS),
        (b"\xff", SIZE, STOPS),
        (json.dumps(RAW).encode(), 100, STOPS),
    ],
)
def test_unusable_tokenizers(data: bytes, size: int, stops: list[int]) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.json"):
        Vocabulary(data, size, stops)


def test_stop_ids_may_lie_outside_or_be_missing() -> None:
    data = json.dumps(RAW).encode()
    assert Vocabulary(data, SIZE, [2, -1, 99999]).stop_ids == [2]
    constraint = Constraint(Vocabulary(data, SIZE, []), Grammar.regex("a"))
    constraint.accept(SPECIAL.tokenizer.encode("a")[0])
    mask = constraint.mask()
    assert constraint.finished and mask is not None and not mask.any()


KEYWORDS = [
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "properties"),
    *("required", "items", "pattern", "minLength", "maxLength", "minimum", "format"),
    *("additionalProperties", "x-guidance"),
]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYWORDS) | st.text(max_size=3),
            inner
            | st.sampled_from(["string", "integer", "object", "array", "#", "#/$defs/a", "^a"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


def refusal(make: Callable[[], Grammar]) -> str:
    try:
        Constraint(SPECIAL.vocabulary, make()).mask()
    except UsageError as error:
        return str(error)
    return ""


@settings(max_examples=50, deadline=None)
@given(JUNK, JUNK, st.text(max_size=6))
def test_no_schema_crashes_anything(schema: Any, parameters: Any, value: str) -> None:
    """Either it is honoured, or a UsageError says why not; arguments are read all the same."""
    declared = [
        tool("f", ("a",), a=schema),
        {"type": "function", "function": {"name": "g", "parameters": parameters}},
    ]
    for make in (
        lambda: Grammar.json_schema(schema),
        lambda: Grammar.tool_calls(declared, choice="f"),
        lambda: Grammar.tool_calls(declared, choice="required"),
        lambda: Grammar.tool_calls(declared, choice="auto", strict=set()),
    ):
        reason = refusal(make)
        assert len(reason) < 600 and "\n" not in reason
    for name in "fg":
        _, calls = parse_tool_calls(call(name, a=value, b=value), declared)
        assert len(calls) == 1
