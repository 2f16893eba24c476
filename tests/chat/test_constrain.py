"""Grammars as masks over the vocabulary."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.chat import Constraint, Grammar, Tokenizer, ToolCall, Vocabulary, parse_tool_calls
from headgate.demo import CHECKPOINT
from headgate.errors import UsageError

SIZE, STOPS = 4200, [2, 0]
RAW = json.loads((CHECKPOINT / "tokenizer.json").read_bytes())
MARKS = ("tool_call>", "tool_response>", "think>")


def flavour(kind: str) -> bytes:
    """The demo's tokenizer with its tags as special tokens, added tokens or plain text."""
    raw: dict[str, Any] = json.loads(json.dumps(RAW))
    mine = [t for t in raw["added_tokens"] if t["content"].endswith(MARKS)]
    for token in mine:
        if kind == "added":
            token["special"] = False
        elif kind == "plain":
            raw["added_tokens"].remove(token)
            raw["model"]["vocab"][f"unused{token['id']}"] = raw["model"]["vocab"].pop(
                token["content"]
            )
    return json.dumps(raw).encode()


class Setting:
    def __init__(self, kind: str) -> None:
        data = flavour(kind)
        self.kind = kind
        self.tokenizer = Tokenizer.from_bytes(data)
        self.vocabulary = Vocabulary(data, SIZE, STOPS)

    def refused_at(self, grammar: Grammar, text: str, after: int | None = None) -> str | None:
        """The text from the first token that is not allowed, "" if it may not end, None if
        all of it is allowed."""
        constraint = Constraint(self.vocabulary, grammar, after=after)
        ids = self.tokenizer.encode(text)
        for at, token in enumerate(ids):
            mask, forced = constraint.mask(), constraint.forced()
            if mask is not None:
                assert mask.shape == (SIZE,) and not mask[len(RAW["model"]["vocab"]) :].any()
                assert all(mask[first] for first in forced[:1])
                if not mask[token]:
                    with pytest.raises(UsageError, match="not allowed"):
                        constraint.accept(token)
                    return self.tokenizer.decode(ids[at:])
            constraint.accept(token)
        mask = constraint.mask()
        return None if mask is None or mask[STOPS].all() else ""


SPECIAL = Setting("special")
SETTINGS = [SPECIAL, Setting("added"), Setting("plain")]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.kind)


def tool(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool(
    "weather",
    ("city",),
    city={"type": "string"},
    days={"type": "integer", "minimum": 1},
    unit={"type": "string", "enum": ["C", "F"]},
)
NOW = tool("now")


def call(name: str, **values: str) -> str:
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


@each_setting
def test_required_calls_are_well_formed_and_by_schema(setting: Setting) -> None:
    grammar = Grammar.tool_calls([WEATHER, NOW], choice="required")
    good = [
        call("now"),
        call("weather", city="Oslo"),
        call("weather", city=""),
        call("weather", city='two\nlines <b> </para> "x" {é🦊\n'),
        call("weather", city="Oslo", days="12", unit="F"),
        call("weather", city="Oslo", unit="C") + "\n" + call("now"),
    ]
    for text in good:
        assert setting.refused_at(grammar, text) is None
        assert "".join(parse_tool_calls(text, [WEATHER, NOW])[0]) == ""
    bad = {
        "Hello": "Hello",
        call("weather"): "/function>",  # city is required
        call("other"): "other",
        call("now", city="x"): "parameter",
        call("weather", days="1", city="x"): "days",  # the declared order
        call("weather", city="x", days="0"): "0",
        call("weather", city="x", days='"1"'): '"1"',
        call("weather", city="x", unit="K"): "K",
        call("weather", city="x</function>"): "</function>",
        call("now") + "\n\n" + call("now"): "\n\n",
        call("now") + " and": " and",
    }
    for text, start in bad.items():
        found = setting.refused_at(grammar, text)
        assert found and start.strip("</>") in found[: len(start) + 12], (text, found)
    assert setting.refused_at(grammar, "") == ""
    assert setting.refused_at(grammar, call("now") + "\n") == ""


@each_setting
def test_one_call_and_named_calls(setting: Setting) -> None:
    one = Grammar.tool_calls([WEATHER, NOW], choice="required", parallel=False)
    assert setting.refused_at(one, call("now")) is None
    assert setting.refused_at(one, call("now") + "\n" + call("now"))
    named = Grammar.tool_calls([WEATHER, NOW], choice="now")
    assert setting.refused_at(named, call("now")) is None
    assert setting.refused_at(named, call("weather", city="x"))


@each_setting
def test_auto_leaves_text_free_and_constrains_calls(setting: Setting) -> None:
    grammar = Grammar.tool_calls([WEATHER, NOW], choice="auto")
    text = 'Fine <function= {"a" </parameter>'
    assert setting.refused_at(grammar, text) is None
    assert setting.refused_at(grammar, f"{text}\n{call('now')}\n{call('now')} done") is None
    assert setting.refused_at(grammar, f"{text}\n{call('other')}")
    assert setting.refused_at(grammar, f"{call('now')}\n{call('weather')}")
    one = Grammar.tool_calls([NOW], choice="auto", parallel=False)
    assert setting.refused_at(one, f"{text}\n{call('now')}") is None
    assert setting.refused_at(one, f"{text}\n{call('now')}\n{call('now')}")


def test_free_text_costs_nothing_where_the_tag_is_a_token() -> None:
    grammar = Grammar.tool_calls([NOW], choice="auto")
    constraint = Constraint(SPECIAL.vocabulary, grammar)
    assert constraint.mask() is None and constraint.forced() == [] and not constraint.finished
    for token in SPECIAL.tokenizer.encode("text <tool_call>"):
        assert constraint.mask() is None
        constraint.accept(token)
    assert constraint.mask() is not None
    rest = SPECIAL.tokenizer.encode(call("now"))[1:]
    assert constraint.forced() == rest


@each_setting
def test_forced_tokens_write_the_markup(setting: Setting) -> None:
    grammar = Grammar.tool_calls([WEATHER], choice="required", parallel=False)
    constraint = Constraint(setting.vocabulary, grammar)
    text = ""
    for part in ("\nOslo\n</parameter>", "\n<parameter=unit>\nC"):
        forced = constraint.forced()
        for token in forced:
            constraint.accept(token)
        text += setting.tokenizer.decode(forced) + part
        for token in setting.tokenizer.encode(part):
            constraint.accept(token)
    while forced := constraint.forced():
        for token in forced:
            constraint.accept(token)
        text += setting.tokenizer.decode(forced)
    assert constraint.finished


def test_functions_that_are_not_strict_take_any_text() -> None:
    grammar = Grammar.tool_calls([WEATHER, NOW], choice="required", strict=set())
    for text in (call("weather", days="soon"), call("weather"), call("now", x="1", y="2")):
        assert SPECIAL.refused_at(grammar, text) is None
    assert SPECIAL.refused_at(grammar, call("weather", town="x"))
    only = Grammar.tool_calls([WEATHER, NOW], choice="required", strict={"weather"})
    assert SPECIAL.refused_at(only, call("weather", city="x", days="soon"))


NODE = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"$ref": "#/properties/node"}, {"type": "null"}]}},
    "required": ["next"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["string", "null"]}, ["x", "null"], []),
        ({"anyOf": [{"enum": ["a", "b"]}, {"type": "integer"}]}, ["a", "b", "5"], ["c", "5.5"]),
        ({"enum": ["a\nb", 'q"\\', 5, None]}, ["a\nb", 'q"\\', "5", "null"], ["a", "6"]),
        ({"enum": ["a", "a\nb", "", [1], False]}, ["a", "a\nb", "", "[1]", "false"], ["b"]),
        ({"const": "x"}, ["x"], ["y", ""]),
        ({"type": "string", "maxLength": 3, "minLength": 1}, ["é", "abc"], ["abcd", ""]),
        ({"type": "string", "pattern": "^[a-z]+$"}, ["abc"], ["a1"]),
        ({"type": "string", "pattern": r"\d|^x/y$"}, ["a1b", "x/y", "5"], ["x/yz", "a"]),
        ({"type": ["string", "null"], "pattern": "^a"}, ["ab", "null"], ["b"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "1"]),
        ({"type": "number"}, ["1", "-2.5e3"], ["x", "+1"]),
        ({"type": "array", "items": {"type": "string"}}, ['["a", "</b>"]', "[]"], ["[1]", "a"]),
        ({"type": "object"}, ['{"a": {"b": []}}'], ["[]"]),
        ({"$ref": "#/properties/node"}, ['{"next": {"next": null}}'], ["null", '{"next": 5}']),
        (
            # names that are keywords elsewhere
            {
                "type": "object",
                "properties": {"default": {"$ref": "#/properties/node"}},
                "required": ["default"],
                "additionalProperties": False,
            },
            ['{"default": {"next": null}}'],
            ['{"default": 5}'],
        ),
        ({}, ["anything", "[1"], []),
        ({"type": ["string", "integer"]}, ["anything", "5"], []),
        (True, ["x"], []),
    ],
)
def test_values_follow_their_schema(schema: Any, good: list[str], bad: list[str]) -> None:
    tools = [tool("f", ("v",), v=schema, node=NODE)]
    grammar = Grammar.tool_calls(tools, choice="f")
    for value in good:
        assert SPECIAL.refused_at(grammar, call("f", v=value)) is None, value
    for value in bad:
        assert SPECIAL.refused_at(grammar, call("f", v=value)) is not None, value


@pytest.mark.parametrize(
    ("tools", "choice", "reason"),
    [
        ([], "required", "no tools"),
        ([NOW], "later", "later, which is not among the tools"),
        ([tool("a>b")], "required", "function name 'a>b'"),
        ([tool("f", (), **{"a\nb": {}})], "required", "parameter name"),
        ([tool("f", a=False)], "required", "parameter a: no value is allowed"),
        ([tool("f", a={"enum": ["</parameter>"]})], "required", "contains a tag"),
        ([tool("f", a={"type": "string", "pattern": "(?=x)"})], "required", "look-around"),
        ([tool("f", a={"type": "string", "pattern": "("})], "required", "cannot be used|pattern"),
        ([tool("f", a={"type": "string", "minLength": -1})], "required", "length limit"),
        ([tool("f", a={"type": "array", "uniqueItems": True})], "required", "uniqueItems"),
        (
            [tool("f", a={"type": ["string", "integer"], "maxLength": 5})],
            "required",
            "restricted string",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"anyOf": [{}]}}}],
            "required",
            "anyOf beside the parameters",
        ),
    ],
)
def test_declarations_that_cannot_be_honoured(tools: Any, choice: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Grammar.tool_calls(tools, choice=choice)


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


def test_raw_grammars() -> None:
    grammar = Grammar.regex(r"\d{2,3}|yes")
    assert SPECIAL.refused_at(grammar, "123") is None
    assert SPECIAL.refused_at(grammar, "1") == ""
    assert SPECIAL.refused_at(grammar, "no") == "no"
    lark = Grammar.lark('start: <tool_call> "a" inner\ninner: "(" inner ")" | "x"')
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


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20), st.text(max_size=10))
def test_any_string_without_a_tag_can_be_an_argument(city: str, tail: str) -> None:
    """What the grammar allows, the parser reads back."""
    value = city + "</" + tail
    text = call("weather", city=value)
    grammar = Grammar.tool_calls([WEATHER], choice="weather")
    markup = any(t["content"] in value for t in RAW["added_tokens"])
    if markup or SPECIAL.tokenizer.decode(SPECIAL.tokenizer.encode(text)) != text:
        return
    assert SPECIAL.refused_at(grammar, text) is None
    assert parse_tool_calls(text, [WEATHER]) == ("", [ToolCall("weather", {"city": value})])


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
