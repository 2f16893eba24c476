"""Tool declarations, known or made up, and requests for them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import words
from fields import KNOWN, Field, draw, invent_fields, mention
from words import pick

# verb, noun, what it does, parameters that make sense for it
FAMILIES = [
    ("get", "weather", "Get the weather forecast", ["city", "date", "unit"]),
    ("send", "email", "Send an e-mail", ["to", "title", "message", "priority"]),
    ("create", "event", "Create a calendar event", ["title", "date", "time", "minutes", "guests"]),
    ("set", "light", "Change a light", ["brightness", "color", "title"]),
    ("set", "thermostat", "Change the heating", ["mode", "range", "time"]),
    ("book", "flight", "Book a flight", ["destination", "date", "count", "recipient"]),
    ("find", "hotel", "Find a hotel", ["city", "date", "range", "sort"]),
    ("track", "order", "Track an order", ["order_id", "notify"]),
    ("read", "file", "Read a file", ["path", "count"]),
    ("search", "notes", "Search the notes", ["query", "tags", "sort"]),
    ("add", "reminder", "Add a reminder", ["title", "weekday", "time", "notify"]),
    ("convert", "currency", "Convert money", ["amount", "currency"]),
    ("ship", "parcel", "Ship a parcel", ["recipient", "address", "priority"]),
    ("export", "report", "Export a report", ["title", "format", "range"]),
    ("play", "music", "Play music", ["query", "minutes"]),
    ("query", "logs", "Query the logs", ["level", "date", "count"]),
    ("order", "supplies", "Order supplies", ["title", "count", "address"]),
    ("share", "album", "Share an album", ["title", "guests", "message"]),
    ("plan", "route", "Plan a route", ["city", "destination", "mode"]),
    ("pay", "invoice", "Pay an invoice", ["order_id", "amount", "currency", "date"]),
    ("fetch", "page", "Fetch a web page", ["url", "format"]),
    ("write", "file", "Write a file", ["path", "message"]),
]
VERBS = ["fetch", "open", "close", "update", "start", "stop", "list", "remove", "rename", "check", "measure", "scan"]  # fmt: skip
NOUNS = ["pump", "valve", "camera", "account", "booking", "course", "door", "table", "tank", "oven", "printer", "router", "stock", "shelf"]  # fmt: skip

Call = dict[str, Any]


def call(name: str, args: dict[str, Any]) -> Call:
    """A tool call in OpenAI's form."""
    return {"type": "function", "function": {"name": name, "arguments": args}}


@dataclass
class Tool:
    """A function that the model may call."""

    verb: str
    noun: str
    name: str
    desc: str
    fields: tuple[Field, ...]
    required: list[str]

    def schema(self) -> dict[str, Any]:
        """The declaration in OpenAI's form."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.desc,
                "parameters": {
                    "type": "object",
                    "properties": {f.name: f.schema for f in self.fields},
                    "required": self.required,
                },
            },
        }

    def ask(self, r: random.Random, held: bool) -> tuple[str, dict[str, Any]]:
        """A request in words, and the arguments in the order of mention."""
        chosen = [f for f in self.fields if f.name in self.required or r.random() < 0.5]
        r.shuffle(chosen)
        args, said = {}, []
        for field in chosen:
            value, spoken = draw(field, r, held)
            args[field.name] = value
            said.append(mention(field, spoken, r))
        what = self.desc[0].lower() + self.desc[1:]
        if r.random() < 0.2:
            what = pick(r, ["use ", "call ", "run "]) + self.name
        plain = any(not f.say for f in chosen) and said
        text = (
            (" with " + pick(r, [", ", ", ", "; "]).join(said)) if plain else " ".join(["", *said])
        )
        return what + text, args


def _name(r: random.Random, verb: str, noun: str) -> str:
    k = r.random()
    if k < 0.7:
        return f"{verb}_{noun}"
    if k < 0.8:
        return f"{noun}_{verb}"
    if k < 0.9:
        return verb + noun.capitalize()
    return f"{noun}.{verb}" if k < 0.95 else f"{verb}-{noun}"


def make_tool(r: random.Random, held: bool, seen: bool, like: Tool | None = None) -> Tool:
    """A tool.

    Args:
        seen: of a family that training has in many transcripts; made up otherwise.
        like: a tool to share the verb or the noun with.
    """
    if seen and like is None and r.random() < 0.7:
        verb, noun, desc, names = pick(r, FAMILIES)
        fields = [KNOWN[n] for n in names]
    else:
        verb, noun = (
            (pick(r, VERBS), pick(r, NOUNS)) if seen else (words.word(r, held), words.word(r, held))
        )
        if not seen and r.random() < 0.3:
            verb, noun = (pick(r, VERBS), noun) if r.random() < 0.7 else (verb, pick(r, NOUNS))
        if like:
            verb, noun = (like.verb, noun) if r.random() < 0.5 else (verb, like.noun)
        desc = f"{verb.capitalize()} the {noun}"
        if seen:
            fields = r.sample(list(KNOWN.values()), 1 + int(r.random() * 5))
        else:
            fields = list(invent_fields(r, held, 1 + int(r.random() * 4)))
            if r.random() < 0.15:
                extra = pick(r, list(KNOWN.values()))
                fields = [f for f in fields if f.name != extra.name] + [extra]
    r.shuffle(fields)
    fields = fields[: 1 + int(r.random() * len(fields))]
    required = [f.name for f in fields if r.random() < 0.7] or [fields[0].name]
    return Tool(verb, noun, _name(r, verb, noun), desc, tuple(fields), required)


def make_tools(r: random.Random, n: int, held: bool, seen: bool) -> list[Tool]:
    """``n`` tools that can be told apart, some of which look alike."""
    tools: list[Tool] = []
    while len(tools) < n:
        like = pick(r, tools) if tools and r.random() < 0.3 else None
        tool = make_tool(r, held, seen, like)
        if all(tool.name != t.name and tool.desc != t.desc for t in tools):
            tools.append(tool)
    return tools
