"""Seeded chat transcripts that teach a small model to call tools.

A transcript is a dict {"kind", "tools", "messages", "thinking"} in the OpenAI message
shape. With ``held`` every made-up name and value comes from the split that training
never draws (see :mod:`words`).
"""

from __future__ import annotations

import json
import random
from typing import Any

import words
from fields import KNOWN, draw, invent_fields, mention
from tools import Tool, call, make_tool, make_tools
from words import pick

from chat import chat_messages, story_messages, sum_messages, think_aloud

Messages = list[dict[str, Any]]
Transcript = dict[str, Any]

NO_TOOL = "I have no tool for that."
OPENERS = ["Please {}.", "Could you {}?", "I need you to {}.", "{}, please.", "Can you {}?", "Hi! {}.", "I would like you to {}.", "{}", "{}."]  # fmt: skip


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _say(text: str, reasoning: str = "") -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return message | {"reasoning_content": reasoning} if reasoning else message


def _calls(calls: list[dict[str, Any]], reasoning: str = "") -> dict[str, Any]:
    return {**_say("", reasoning), "tool_calls": calls}


def _open(r: random.Random, text: str) -> str:
    form = pick(r, OPENERS)
    if form[0] == "{" or form[:2] == "Hi":
        text = text[0].upper() + text[1:]
    return form.format(text) if "{}" in form else text


def _transcript(
    kind: str, tools: list[Tool], messages: Messages, r: random.Random, thinking: bool
) -> Transcript:
    return {
        "kind": kind,
        "tools": [t.schema() for t in tools],
        "messages": messages,
        "thinking": thinking,
    }


# -- tool calls


def calling(kind: str, r: random.Random, held: bool, seen: bool, thinking: bool) -> Transcript:
    """One request, one or several calls."""
    n = pick(r, [1, 1, 2, 2, 3, 4]) if kind != "parallel" else pick(r, [1, 2, 2, 3])
    tools = make_tools(r, n, held, seen)
    count = 1 if kind == "calling" else pick(r, [2, 2, 3])
    picks = [pick(r, tools) for _ in range(count)]
    asked = [t.ask(r, held) for t in picks]
    text = pick(r, [" and then ", ", then ", "; then "]).join(words_ for words_, _ in asked)
    calls = [call(t.name, a) for t, (_, a) in zip(picks, asked, strict=True)]
    reasoning = think_aloud(r, "calls", [t.name for t in picks]) if thinking else ""
    messages = [_user(_open(r, text)), _calls(calls, reasoning)]
    if r.random() < 0.15:
        messages += _results(r, held, len(picks))[0]
    return _transcript(kind, tools, messages, r, thinking)


def _results(r: random.Random, held: bool, n: int) -> tuple[Messages, list[str | None]]:
    """Tool responses and the answer to them; the references, None where a call failed."""
    messages: Messages = []
    said, ids = [], []
    for _ in range(n):
        if r.random() < 0.8:
            name = words.identifier(r, held)
            ids.append(name)
            extra = {words.word(r, held): r.randrange(1000)} if r.random() < 0.4 else {}
            payload: dict[str, Any] = {"ok": True, "id": name}
            payload = payload | extra if r.random() < 0.5 else {**extra, **payload}
            said.append(f"Done. The reference is {name}.")
        else:
            error = pick(r, ["not found", "no permission", "timed out"])
            if r.random() < 0.6:
                error = f"{words.word(r, held)} {pick(r, ['not found', 'is locked', 'is missing'])}"
            payload = {"ok": False, "error": error}
            ids.append(None)
            said.append(f"That did not work: {error}.")
        messages.append({"role": "tool", "content": json.dumps(payload, ensure_ascii=False)})
    return [*messages, _say(" ".join(said))], ids


def irrelevant(r: random.Random, held: bool, seen: bool, thinking: bool) -> Transcript:
    """A request that no tool serves, or a question that needs none."""
    tools = make_tools(r, pick(r, [1, 2, 2, 3, 4]), held, seen)
    while True:
        like = pick(r, tools) if r.random() < 0.5 else None
        off = make_tool(r, held, seen, like)
        if all(off.name != t.name and off.desc != t.desc for t in tools):
            break
    text, _ = off.ask(r, held)
    reasoning = think_aloud(r, "none", [t.name for t in tools]) if thinking else ""
    answer = NO_TOOL
    messages = [_user(_open(r, text)), _say(answer, reasoning)]
    if r.random() < 0.15:
        answer = f"{words.word(r, held).capitalize()} {pick(r, ['is not possible', 'cannot be done', 'is unknown'])}."
        messages[-1]["content"] = answer
        messages.insert(
            0, {"role": "system", "content": f"If no tool fits, answer exactly: {answer}"}
        )
    return _transcript("irrelevant", tools, messages, r, thinking)


def multi_turn(r: random.Random, held: bool, seen: bool, thinking: bool) -> Transcript:
    """Results that are reported, passed on, or followed by a correction."""
    tools = make_tools(r, pick(r, [1, 2, 2, 3]), held, seen)
    tool = pick(r, tools)
    text, args = tool.ask(r, held)
    messages = [_user(_open(r, text)), _calls([call(tool.name, args)])]
    reply, ids = _results(r, held, 1)
    messages += reply
    k = r.random()
    if k < 0.3 or not args:
        pass
    elif k < 0.55:  # the same again, with one value changed
        field = pick(r, [f for f in tool.fields if f.name in args])
        value, spoken = draw(field, r, held)
        form = pick(r, ["Try again with {}.", "Now the same with {}.", "Again, but {}."])
        messages.append(_user(form.format(mention(field, spoken, r))))
        messages.append(_calls([call(tool.name, {**args, field.name: value})]))
    elif k < 0.8 and ids[0] is not None:  # the result is an argument of the next call
        other = pick(r, tools)
        text, args = other.ask(r, held)
        strings = [
            f for f in other.fields if f.schema.get("type") == "string" and "enum" not in f.schema
        ]
        free = [f for f in strings if f.name not in args]
        if free:
            args = {**args, free[0].name: ids[0]}
            name = free[0].name
            messages.append(_user(_open(r, f"{text} and with the reference as {name}")))
            messages.append(_calls([call(other.name, args)]))
        else:
            messages.append(_user("What was the reference?"))
            messages.append(_say(f"The reference was {ids[0]}."))
    else:
        other = pick(r, tools)
        text, args = other.ask(r, held)
        messages.append(_user(_open(r, text)))
        reasoning = think_aloud(r, "calls", [other.name]) if thinking else ""
        messages.append(_calls([call(other.name, args)], reasoning))
        if r.random() < 0.4:
            messages += _results(r, held, 1)[0]
    return _transcript("multi_turn", tools, messages, r, thinking)


# -- JSON by schema


def json_answer(r: random.Random, held: bool, thinking: bool) -> Transcript:
    """A schema and facts; the answer is the object."""
    if r.random() < 0.25:
        fields = tuple(
            r.sample([f for f in KNOWN.values() if f.name != "notify"], 2 + int(r.random() * 3))
        )
    else:
        fields = invent_fields(r, held, 1 + int(r.random() * 4))
    drawn = [(f, *draw(f, r, held)) for f in fields]
    schema = {
        "type": "object",
        "properties": {f.name: f.schema for f in fields},
        "required": [f.name for f in fields],
    }
    plain = [
        f if not f.say or r.random() < 0.3 else type(f)(f.name, f.schema, f.kind) for f in fields
    ]
    facts = "; ".join(mention(p, said, r) for p, (_, _, said) in zip(plain, drawn, strict=True))
    text = f"Write a JSON object that follows this schema: {json.dumps(schema, ensure_ascii=False)}\nThe facts: {facts}"
    answer = json.dumps({f.name: value for f, value, _ in drawn}, ensure_ascii=False)
    reasoning = think_aloud(r, "keys", [f.name for f in fields]) if thinking else ""
    return _transcript("json", [], [_user(text), _say(answer, reasoning)], r, thinking)


# -- all kinds

WEIGHTS = {"calling": 0.32, "parallel": 0.11, "irrelevant": 0.10, "multi_turn": 0.13, "json": 0.12, "chat": 0.13, "sum": 0.06, "story": 0.03}  # fmt: skip
KINDS = list(WEIGHTS)


def transcript(
    seed: int,
    kind: str | None = None,
    held: bool = False,
    seen: bool | None = None,
    thinking: bool | None = None,
) -> Transcript:
    """One transcript, a pure function of its arguments.

    Args:
        held: draw from the held-out split.
        seen: tools of known families instead of made-up ones; both unless given.
        thinking: with reasoning before the answer; one in seven unless given.
    """
    r = random.Random(f"{seed}/{kind}/{held}/{seen}")
    kind = kind or r.choices(KINDS, list(WEIGHTS.values()))[0]
    think = r.random() < 0.15 if thinking is None else thinking
    known = r.random() < 0.3 if seen is None else seen
    if kind in ("calling", "parallel"):
        return calling(kind, r, held, known, think)
    if kind == "irrelevant":
        return irrelevant(r, held, known, think)
    if kind == "multi_turn":
        return multi_turn(r, held, known, False)
    if kind == "json":
        return json_answer(r, held, think)
    if kind == "sum":  # alone as in a chat, or many in the place of one long document
        count = 1 if held or r.random() < 0.2 else 4 + int(r.random() * 9)
        return _transcript(kind, [], sum_messages(r, held, count, think), r, think)
    messages = story_messages(r, held) if kind == "story" else chat_messages(r, held, think)
    if kind == "chat" and r.random() < 0.15:  # tools that the question does not need
        tools = make_tools(r, pick(r, [1, 2]), held, known)
        return _transcript(kind, tools, messages, r, think)
    return _transcript(kind, [], messages, r, think and kind == "chat")
