"""Grammars of tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.chat import Constraint, Grammar, OutputParser, ToolCall, parse_tool_calls
from headgate.chat.output import CallEnd
from headgate.errors import UsageError
from tests.chat.grammars import NOW, RAW, SPECIAL, WEATHER, Setting, call, each_setting, tool


@each_setting
def test_required_calls_are_well_formed_and_by_schema(setting: Setting) -> None:
    grammar = Grammar.tool_calls([WEATHER, NOW], choice="required")
    good = [
        call("now"),
        call("weather", city="Oslo"),
        call("weather", city=""),
        call("weather", city='two\nlines <b> </para> "x" {é🦊\n'),
        call("weather", city="Oslo", days="12", unit="F"),
        call("weather", unit="F", city="Oslo", days="12"),
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
        call("weather", unit="C", days="1"): "/function>",
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


def forced_around(setting: Setting, grammar: Grammar, *parts: str) -> str:
    """The whole answer in which only ``parts`` are not forced."""
    constraint = Constraint(setting.vocabulary, grammar)
    text = ""
    for part in (*parts, ""):
        while forced := constraint.forced():
            for token in forced:
                constraint.accept(token)
            text += setting.tokenizer.decode(forced)
        for token in setting.tokenizer.encode(part):
            constraint.accept(token)
        text += part
    assert constraint.finished
    return text


@each_setting
def test_forced_tokens_write_the_markup(setting: Setting) -> None:
    grammar = Grammar.tool_calls([WEATHER], choice="required", parallel=False)
    parts = ("city>\nOslo\n</parameter>", "\n<parameter=unit>\nC", "\n</function>")
    text = forced_around(setting, grammar, *parts)
    assert text == call("weather", city="Oslo", unit="C")


@each_setting
def test_forced_tokens_name_the_last_required_parameter(setting: Setting) -> None:
    tools = [tool("f", ("ab", "cd"), ab={"const": 1}, cd={"const": 2})]
    grammar = Grammar.tool_calls(tools, parallel=False)
    assert forced_around(setting, grammar, "cd") == call("f", cd="2", ab="1")


KINDS: dict[str, tuple[Any, str, Any]] = {
    "text": ({"type": "string"}, "a <b>\nc", "a <b>\nc"),
    "count": ({"type": "integer"}, "5", 5),
    "mode": ({"enum": ["r", "rw"]}, "r", "r"),
    "mode_2": ({"type": ["boolean", "null"]}, "null", None),
    "short": ({"type": "string", "maxLength": 3}, "", ""),
    "box": ({"type": "object"}, '{"a": ["</b>"]}', {"a": ["</b>"]}),
}


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(KINDS))), st.lists(st.sampled_from(sorted(KINDS))))
def test_parameters_in_any_order_none_twice_required_ones_for_sure(
    required: set[str], written: list[str]
) -> None:
    declared = {name: schema for name, (schema, _, _) in KINDS.items()}
    tools = [tool("f", tuple(sorted(required)), **declared)]
    grammar = Grammar.tool_calls(tools, choice="f")
    again = next((at for at, name in enumerate(written) if name in written[:at]), None)
    once = list(dict.fromkeys(written))
    opening, closing = "<tool_call>\n<function=f>\n", "</function>\n</tool_call>"
    parameters = [f"<parameter={name}>\n{KINDS[name][1]}\n</parameter>\n" for name in written]
    whole = opening + "".join(parameters) + closing
    refused = SPECIAL.refused_at(grammar, whole)
    if again is not None:
        assert refused is not None
    elif required <= set(written):
        assert refused is None
        parser = OutputParser(tools)
        events = [event for c in whole for event in parser.push(c)] + parser.finish()
        (found,) = [event.call for event in events if isinstance(event, CallEnd)]
        assert found == ToolCall("f", {name: KINDS[name][2] for name in once})
        assert list(found.arguments) == once
    else:
        assert refused is not None and refused.strip() in closing


@pytest.mark.parametrize("strict", [None, set()])
def test_a_parameter_is_refused_where_it_begins_again(strict: set[str] | None) -> None:
    grammar = Grammar.tool_calls([WEATHER], strict=strict)
    text = call("weather", unit="C", city="x").removesuffix("</function>\n</tool_call>")
    assert SPECIAL.refused_at(grammar, text + "<parameter=days>\n5") == ""
    for name in ("unit", "city"):
        refused = SPECIAL.refused_at(grammar, f"{text}<parameter={name}>\nC\n")
        assert refused and f"{name}>" in refused and len(refused) < len(name) + 20


def test_the_first_64_parameters_precede_the_next() -> None:
    names = [f"p{number}" for number in range(130)]
    required = ("p3", "p63", "p64", "p129")
    tools = [tool("f", required, **{name: {"type": "integer"} for name in names})]
    grammar = Grammar.tool_calls(tools, choice="f")

    def accepted(*written: str) -> bool:
        return SPECIAL.refused_at(grammar, call("f", **dict.fromkeys(written, "1"))) is None

    assert accepted(*names[63::-1], *names[127:63:-1], "p129", "p128")
    assert accepted("p63", "p3", "p64", "p129")
    assert not accepted("p64", "p3", "p63", "p129")
    for missing in required:
        assert not accepted(*(name for name in required if name != missing))
    every = [tool("f", tuple(names[:64]), **{name: {"type": "integer"} for name in names[:64]})]
    grammar = Grammar.tool_calls(every, choice="f")
    assert accepted(*names[40:64], *names[:40]) and not accepted(*names[:63])


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
        (
            {"type": "string", "maxLength": 1000},
            ["x" * 1000, "é<b></" * 166, "<</para<p<parameter-"],
            ["x" * 1001, "<<parameter=", "a</param</function>b"],
        ),
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


LISTED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (LISTED, ["{}", '{"a": 1}'], ['{"b": 1}', '{"a": 1, "b": 1}']),
        ({"items": LISTED, "type": "array"}, ['[{"a": 1}]'], ['[{"b": 1}]']),
        ({"type": "object", "properties": {"enum": LISTED}}, ['{"enum": {}}'], ['{"enum": {"b"']),
        ({"$ref": "#/$defs/d"}, ['{"a": 1}'], ['{"b": 1}']),
        ({"anyOf": [LISTED, {"type": "null"}]}, ['{"a": 1}', "null"], ['{"b": 1}']),
        ({"type": "object"}, ['{"b": 1}'], []),
        ({**LISTED, "additionalProperties": True}, ['{"a": 1, "b": 1}'], []),
        ({**LISTED, "patternProperties": {"^b": {}}}, ['{"a": 1, "b": 1}'], []),
        ({**LISTED, "required": ["b"]}, ['{"b": 1}', '{"a": 1, "b": 1}'], ["{}"]),
        ({"allOf": [LISTED, {"properties": {"b": {}}}]}, ['{"a": 1, "b": 1}'], []),
        ({**LISTED, "anyOf": [{"properties": {"b": {}}}]}, ['{"a": 1, "b": 1}'], []),
        (
            {"$ref": "#/$defs/d", "properties": {"b": {}}, "required": ["b"]},
            ['{"a": 1, "b": 1}', '{"b": 1}'],
            ['{"a": 1}', '{"b": 1, "c": 1}'],
        ),
        ({"const": LISTED}, [json.dumps(LISTED)], ["{}"]),
    ],
)
def test_objects_that_list_their_properties_take_no_others(
    schema: Any, good: list[str], bad: list[str]
) -> None:
    parameters = {"properties": {"v": schema}, "required": ["v"], "$defs": {"d": LISTED}}
    grammar = Grammar.tool_calls([{"function": {"name": "f", "parameters": parameters}}])
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
