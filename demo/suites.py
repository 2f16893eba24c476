"""Write the prompts of headgate's quality suites: ``python demo/suites.py``.

What the held-out set has is taken from it; what it lacks comes from the same generators,
always from the split that training never draws. The result is committed
(``src/headgate/evals/suites/data``) and is the same bytes every time.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import words
from corpus import Transcript, _open, transcript
from fields import Field, _object, draw, invent_name, mention
from held_out import HELD_OUT
from tools import Tool, call, make_tool, make_tools
from words import pick

DATA = Path(__file__).parents[1] / "src/headgate/evals/suites/data"
#: Prompts of each kind.
COUNT = 40
#: Facts in a prompt, share of the prompt before the one that is asked for.
FACTS, DEPTHS = (16, 64, 128, 256), (0.0, 0.25, 0.5, 0.75, 1.0)
RECALLS = 8
SIGNS = {
    "quotes": ['"', "'", "`", '\\"', '""', "''"],
    "backslashes": ["\\", "\\n", "\\t", "\\\\", "C:\\"],
    "newlines": ["\n", "\n\n", "\t", "\n  "],
    "braces": ["{", "}", "[", "]", "{}", "<", ">", "</", "}}"],
}

Item = dict[str, Any]
Rows = Iterator[Item]


def plain_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return [c["function"] for c in message.get("tool_calls", [])]


def tool_item(kind: str, t: Transcript, at: int) -> Item:
    """Message ``at`` of a transcript as the answer that is wanted."""
    wanted = t["messages"][at]
    item: Item = {"kind": kind, "tools": t["tools"], "messages": t["messages"][:at]}
    item["calls"] = plain_calls(wanted)
    if t["thinking"]:
        item["thinking"] = True
    if not item["calls"] and t["messages"][at - 1]["role"] == "tool":
        item["mentions"] = reported(t["messages"][:at])
    return item


def reported(messages: list[dict[str, Any]]) -> list[str]:
    """What an answer to the last results has to say: references and errors."""
    found = []
    for message in reversed(messages):
        if message["role"] != "tool":
            break
        result = json.loads(message["content"])
        found.append(result["id"] if result["ok"] else result["error"])
    return found[::-1]


# -- tools


def from_held_out() -> Rows:
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        t = json.loads(line)
        first, last = first_answer(t), len(t["messages"]) - 1
        kind, calls = t["kind"], plain_calls(t["messages"][first])
        if kind in ("seen", "unseen"):
            single = "single" if len(t["tools"]) == 1 else "choose among few"
            yield tool_item("parallel" if len(calls) > 1 else single, t, first)
        elif kind in ("hostile", "irrelevant"):
            yield tool_item("hostile, mixed" if kind == "hostile" else kind, t, first)
        elif kind == "multi_turn" and last > first:
            result = t["messages"][last - 1]
            failed = result["role"] == "tool" and '"ok": false' in result["content"]
            yield tool_item(
                ("error to report" if failed else "result to report")
                if result["role"] == "tool"
                else "after a result",
                t,
                last,
            )
        elif kind == "thinking" and t["tools"]:
            yield tool_item("thinking", t, first)


def first_answer(t: Transcript) -> int:
    return next(i for i, m in enumerate(t["messages"]) if m["role"] == "assistant")


def asked(kind: str, r: random.Random, tools: list[Tool], tool: Tool) -> Item:
    """A request for one tool among ``tools``."""
    text, args = tool.ask(r, True)
    return {
        "kind": kind,
        "tools": [t.schema() for t in tools],
        "messages": [{"role": "user", "content": _open(r, text)}],
        "calls": [call(tool.name, args)["function"]],
    }


def choose_among_many(r: random.Random) -> Item:
    tools = make_tools(r, 8, True, False)
    return asked("choose among many", r, tools, pick(r, tools))


def look_alikes(r: random.Random) -> Item:
    """Tools of which each shares its verb or its noun with the first."""
    first = make_tool(r, True, False)
    tools = [first]
    while len(tools) < 4:
        tool = make_tool(r, True, False, first)
        if all(tool.name != t.name and tool.desc != t.desc for t in tools):
            tools.append(tool)
    r.shuffle(tools)
    return asked("look-alikes", r, tools, pick(r, tools))


def nested(r: random.Random, depth: int) -> Field:
    """A field whose value has ``depth`` levels, a scalar being one."""
    name = invent_name(r, True)
    if depth == 1:
        return scalar(r, pick(r, ["name", "integer", "ident"]), name)
    parts = [nested(r, depth - 1), nested(r, 1)]
    r.shuffle(parts)
    return Field(name, _object(tuple(parts)), "object", parts=tuple(parts))


def scalar(r: random.Random, kind: str, name: str = "") -> Field:
    type_ = "integer" if kind == "integer" else "string"
    return Field(name or invent_name(r, True), {"type": type_}, kind)


def with_fields(kind: str, r: random.Random, fields: list[Field]) -> Item:
    """Two tools, one of which takes exactly ``fields``."""
    tool = make_tool(r, True, False)
    tool.fields, tool.required = tuple(fields), [f.name for f in fields]
    tools = [tool, make_tool(r, True, False)]
    r.shuffle(tools)
    return asked(kind, r, tools, tool)


def schema_depth(depth: int):
    return lambda r: with_fields(f"schema depth {depth}", r, [nested(r, depth), nested(r, 1)])


def hostile(name: str):
    """Strings with signs of one sort only."""

    def value(r: random.Random, held: bool) -> str:
        parts = [words.word(r, held)]
        for _ in range(1 + int(r.random() * 3)):
            parts += [pick(r, SIGNS[name]), " " if r.random() < 0.2 else "", words.word(r, held)]
        return "".join(parts) + (pick(r, SIGNS[name]).strip() if r.random() < 0.3 else "")

    return lambda r: with_value(f"hostile, {name}", r, value)


def scripts(r: random.Random) -> Item:
    def value(r: random.Random, held: bool) -> str:
        letters = pick(r, list(words.SCRIPTS.values()))
        return " ".join(
            "".join(pick(r, letters) for _ in range(2 + int(r.random() * 6)))
            for _ in range(1 + int(r.random() * 3))
        )

    return with_value("hostile, scripts", r, value)


def digits(r: random.Random) -> Item:
    """Numbers that have to be strings, beside one that has not."""
    fields = [scalar(r, "digits"), scalar(r, "integer")]
    return with_fields("hostile, numbers as strings", r, fields)


def with_value(kind: str, r: random.Random, value: Any) -> Item:
    from fields import _STRINGS

    _STRINGS["quoted"], kept = value, _STRINGS["quoted"]
    try:
        return with_fields(kind, r, [scalar(r, "quoted"), scalar(r, "name")])
    finally:
        _STRINGS["quoted"] = kept


def _single(r: random.Random) -> Item:
    tool = make_tool(r, True, False)
    return asked("single", r, [tool], tool)


TOOL_KINDS = [
    _single,
    choose_among_many,
    look_alikes,
    *map(schema_depth, range(1, 6)),
    *map(hostile, SIGNS),
    scripts,
    digits,
]


def multi_turn(seed: int) -> Rows:
    """More turns after results than the held-out set has."""
    t = transcript(seed, "multi_turn", held=True)
    yield from (
        tool_item(
            ("error to report" if "did not work" in m["content"] else "result to report")
            if t["messages"][at - 1]["role"] == "tool"
            else "after a result",
            t,
            at,
        )
        for at, m in enumerate(t["messages"])
        if m["role"] == "assistant" and at > first_answer(t)
    )


def tools() -> Rows:
    yield from from_held_out()
    for make in TOOL_KINDS:
        for seed in range(COUNT):
            yield make(random.Random(f"suites/{make_name(make)}/{seed}"))
    for seed in range(100_000, 100_400):
        yield from multi_turn(seed)


def make_name(make: Any) -> str:
    """Of a maker, for its seeds: the kind that it makes."""
    return str(make(random.Random(0))["kind"])


# -- JSON by schema


def family_fields(family: str, r: random.Random) -> list[tuple[Field, dict[str, Any]]]:
    """Fields, and what their schema says beyond or instead of their own."""
    if family == "types":
        kinds = ["name", "integer", "number", "boolean", "quoted"]
        return [(typed(r, k), {}) for k in r.sample(kinds, 3)] + [(nullable(r), {})]
    if family == "enum":
        return [(enum(r), {}), (enum(r), {}), (scalar(r, "name"), {})]
    if family == "const":
        return [(scalar(r, "name"), {"const": None}), (scalar(r, "integer"), {})]
    if family == "pattern":
        return [
            (scalar(r, "code"), {"pattern": "^[A-Z]{2}-[0-9]{4}$"}),
            (scalar(r, "date"), {"pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"}),
        ]
    if family == "ranges":
        return [
            (typed(r, "small"), {"minimum": 0, "maximum": 100}),
            (scalar(r, "name"), {"minLength": 1, "maxLength": 40}),
        ]
    if family == "arrays":
        return [(array(r), {"minItems": 1, "maxItems": 3}), (scalar(r, "name"), {})]
    if family == "anyOf":
        return [
            (typed(r, "plain"), {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
            (typed(r, "small"), {"anyOf": [{"type": "null"}, {"type": "integer"}]}),
        ]
    depth = {"nesting": 3, "$ref": 2}[family]
    return [(nested(r, depth), {}), (scalar(r, "name"), {})]


FAMILIES = ["types", "enum", "const", "pattern", "ranges", "arrays", "nesting", "anyOf", "$ref"]


def typed(r: random.Random, kind: str) -> Field:
    types = {"integer": "integer", "small": "integer", "number": "number", "boolean": "boolean"}
    return Field(invent_name(r, True), {"type": types.get(kind, "string")}, kind)


def nullable(r: random.Random) -> Field:
    schema = {"type": ["string", "null"]}
    return Field(invent_name(r, True), schema, "nullable", parts=(Field("", {}, "name"),))


def enum(r: random.Random) -> Field:
    values = list(dict.fromkeys(words.word(r, True) for _ in range(3)))
    return Field(invent_name(r, True), {"type": "string", "enum": values}, "enum")


def array(r: random.Random) -> Field:
    kind = pick(r, ["name", "integer"])
    item = scalar(r, kind, "item")
    return Field(
        invent_name(r, True), {"type": "array", "items": item.schema}, "array", parts=(item,)
    )


def _draw(field: Field, r: random.Random) -> tuple[Any, str]:
    """As the corpus draws, with two kinds more."""
    if field.kind == "small":
        value = r.randrange(1, 101)
        return value, str(value)
    if field.kind == "code":
        text = f"{pick(r, 'ABCDEFGH')}{pick(r, 'KLMQRX')}-{r.randrange(1000, 10000)}"
        return text, text
    return draw(field, r, True)


def schema_item(family: str, r: random.Random) -> Item:
    chosen = family_fields(family, r)
    properties, facts, right = {}, [], {}
    for field, extra in chosen:
        value, spoken = _draw(field, r)
        extra = {k: value if k == "const" else v for k, v in extra.items()}
        properties[field.name] = (
            extra if "anyOf" in extra or "const" in extra else field.schema | extra
        )
        facts.append(mention(field, spoken, r))
        right[field.name] = value
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": list(right)}
    if family == "$ref":
        name = words.word(r, True)
        first = chosen[0][0].name
        schema["$defs"] = {name: properties[first]}
        properties[first] = {"$ref": f"#/$defs/{name}"}
    if family not in ("types", "enum"):
        schema["additionalProperties"] = False
    return json_item(family, schema, "; ".join(facts), right)


def json_item(kind: str, schema: Any, facts: str, right: Any, thinking: bool = False) -> Item:
    text = f"Write a JSON object that follows this schema: {json.dumps(schema, ensure_ascii=False)}\nThe facts: {facts}"
    item = {
        "kind": kind,
        "messages": [{"role": "user", "content": text}],
        "schema": schema,
        "value": right,
    }
    return item | {"thinking": True} if thinking else item


def schemas() -> Rows:
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        t = json.loads(line)
        text = t["messages"][0]["content"]
        if "follows this schema" in text:
            schema = json.JSONDecoder().raw_decode(text, text.index("{"))[0]
            facts = text.split("\nThe facts: ", 1)[1]
            kind = "thinking" if t["thinking"] else "corpus"
            right = json.loads(t["messages"][1]["content"])
            yield json_item(kind, schema, facts, right, t["thinking"])
    for family in FAMILIES:
        for seed in range(COUNT):
            yield schema_item(family, random.Random(f"suites/{family}/{seed}"))


# -- recall and text


def recalls() -> Rows:
    for facts in FACTS:
        for depth in DEPTHS:
            for seed in range(RECALLS):
                r = random.Random(f"suites/{facts}/{depth}/{seed}")
                names = list(
                    dict.fromkeys(words.word(r, True).capitalize() for _ in range(2 * facts))
                )[:facts]
                places = list(
                    dict.fromkeys(words.word(r, True).capitalize() for _ in range(2 * facts))
                )[:facts]
                at = round(depth * (facts - 1))
                while any(
                    places[at] in other for other in [*names, *places[:at], *places[at + 1 :]]
                ):
                    places[at] = words.word(r, True).capitalize()
                said = " ".join(f"{a} lives in {b}." for a, b in zip(names, places, strict=True))
                yield {
                    "kind": f"{facts} facts, {depth:.0%} deep",
                    "messages": [
                        {"role": "user", "content": f"{said} Where does {names[at]} live?"}
                    ],
                    "mentions": [places[at]],
                    "others": len(names) - 1,
                }


def texts() -> Rows:
    kinds = {"story": "story", "chat": "chat", "unseen": "calls", "json": "JSON"}
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
        t = json.loads(line)
        if t["kind"] in kinds and t["messages"][-1]["role"] == "assistant":
            yield {"kind": kinds[t["kind"]], "tools": t["tools"], "messages": t["messages"]}


SUITES = {
    "tools": (tools, COUNT),
    "schema": (schemas, COUNT),
    "recall": (recalls, RECALLS),
    "text": (texts, COUNT),
}


def numbered(rows: Rows, most: int) -> Rows:
    """At most so many of each kind, none twice, with names."""
    counts: Counter[str] = Counter()
    seen = set()
    for row in rows:
        key = json.dumps(row, sort_keys=True)
        if counts[row["kind"]] < most and key not in seen:
            seen.add(key)
            yield {"id": f"{row['kind']} {counts[row['kind']]:02d}", **row}
            counts[row["kind"]] += 1


def main() -> None:
    ap = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ap.add_argument("--out", type=Path, default=DATA)
    out = ap.parse_args().out
    for name, (rows, most) in SUITES.items():
        found = list(numbered(rows(), most))
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in found:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        counts = Counter(row["kind"] for row in found)
        print(f"{name}: {file.name}, {(out / file.name).stat().st_size} bytes, {dict(counts)}")


if __name__ == "__main__":
    main()
