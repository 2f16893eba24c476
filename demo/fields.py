"""Parameters: how they are declared, drawn and said aloud."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import words
from words import pick

FIRST = ["Ada", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Liam", "Mona", "Nadia", "Oscar", "Petra", "Quinn", "Rosa", "Sami", "Tara", "Uma", "Viktor", "Wanda", "Yusuf", "Zoe", "Amir", "Bella", "Cyrus", "Dana", "Emil"]  # fmt: skip
CITY = {
    "Paris": "France", "Rome": "Italy", "Oslo": "Norway", "Lima": "Peru", "Cairo": "Egypt", "Delhi": "India",
    "Tokyo": "Japan", "Quito": "Ecuador", "Dublin": "Ireland", "Lisbon": "Portugal", "Madrid": "Spain",
    "Athens": "Greece", "Warsaw": "Poland", "Vienna": "Austria", "Berlin": "Germany", "Nairobi": "Kenya",
    "Ottawa": "Canada", "Havana": "Cuba", "Bogota": "Colombia", "Hanoi": "Vietnam", "Seoul": "South Korea",
    "Helsinki": "Finland", "Tunis": "Tunisia", "Accra": "Ghana", "Santiago": "Chile", "Prague": "Czechia",
}  # fmt: skip
ADJ = ["red", "blue", "quiet", "early", "late", "short", "long", "sunny", "rainy", "bright", "small", "large", "warm", "cold", "simple", "final", "weekly", "annual", "urgent", "shared", "public", "private", "broken", "spare", "silver", "wooden"]  # fmt: skip
NOUN = ["report", "invoice", "meeting", "garden", "server", "ticket", "recipe", "budget", "photo", "parcel", "bicycle", "lesson", "contract", "survey", "playlist", "lamp", "window", "kettle", "engine", "novel", "poster", "blanket", "ladder", "basket", "sensor", "battery"]  # fmt: skip
WEEKDAY = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
ENUMS = {
    "unit": ["celsius", "fahrenheit"], "priority": ["low", "normal", "high"],
    "color": ["white", "amber", "green", "violet"], "mode": ["eco", "comfort", "boost"],
    "format": ["pdf", "csv", "html"], "sort": ["newest", "oldest", "price"],
    "currency": ["EUR", "USD", "JPY", "GBP"], "level": ["debug", "info", "error"],
}  # fmt: skip

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One parameter or property.

    Attributes:
        kind: what :func:`draw` makes of it.
        say: how a person mentions it, {} being the spoken value; empty for the plain
            forms that name the parameter.
    """

    name: str
    schema: Schema
    kind: str
    say: str = ""
    parts: tuple[Field, ...] = ()


def _text(name: str, kind: str, desc: str, say: str) -> Field:
    return Field(name, {"type": "string", "description": desc}, kind, say)


def _number(name: str, type_: str, desc: str, say: str) -> Field:
    return Field(name, {"type": type_, "description": desc}, type_, say)


def _object(fields: tuple[Field, ...], **extra: Any) -> Schema:
    return {
        "type": "object",
        "properties": {f.name: f.schema for f in fields},
        "required": [f.name for f in fields],
        **extra,
    }


_RANGE = (
    Field("low", {"type": "integer"}, "integer"),
    Field("high", {"type": "integer"}, "integer"),
)
_ADDRESS = (
    Field("street", {"type": "string"}, "name"),
    Field("number", {"type": "integer"}, "integer"),
    Field("city", {"type": "string"}, "city"),
)
_KNOWN = [
    _text("city", "city", "Name of the city", "in {}"),
    _text("destination", "city", "City to travel to", "to {}"),
    _text("recipient", "person", "Full name of the person", "for {}"),
    _text("to", "email", "E-mail address of the receiver", "to {}"),
    _text("title", "quoted", "Short title", "called {}"),
    _text("query", "quoted", "Text to look for", "about {}"),
    _text("message", "hostile", "Text to send", "saying {}"),
    _text("date", "date", "Day as YYYY-MM-DD", "on {}"),
    _text("time", "time", "Time as HH:MM", "at {}"),
    _text("weekday", "weekday", "Day of the week", "every {}"),
    _number("amount", "number", "Amount of money", "with an amount of {}"),
    _number("count", "integer", "How many", "with {} items"),
    _number("minutes", "integer", "Length in minutes", "lasting {} minutes"),
    _number("brightness", "integer", "Brightness from 0 to 100", "at brightness {}"),
    _text("order_id", "ident", "Identifier such as QX-1234", "with id {}"),
    _text("path", "path", "Path of the file", "at path {}"),
    _text("url", "url", "Web address", "from {}"),
    Field("notify", {"type": "boolean", "description": "Whether to notify"}, "with", "{} a notification"),
    Field("tags", {"type": "array", "items": {"type": "string"}, "description": "Labels"}, "strings", "with tags {}"),
    Field("guests", {"type": "array", "items": {"type": "string"}, "description": "People invited"}, "people", "inviting {}"),
    Field("range", _object(_RANGE, description="Lower and upper bound"), "range", "ranging from {}", _RANGE),
    Field("address", _object(_ADDRESS, description="Postal address"), "address", "at address {}", _ADDRESS),
]  # fmt: skip
KNOWN = {f.name: f for f in _KNOWN} | {
    name: Field(
        name,
        {"type": "string", "enum": values, "description": f"One of the listed {name} values"},
        "enum",
        f"using {name} {{}}",
    )
    for name, values in ENUMS.items()
}


def quote(r: random.Random, text: str) -> str:
    """A string in marks that do not occur in it."""
    marks = ["''", '""', "``", "«»"]
    first = int(r.random() * 4)
    for i in range(4):
        a, b = marks[(first + i) % 4]
        if a not in text and b not in text:
            return f"{a}{text}{b}"
    return f"«{text}»"


def _spoken(r: random.Random, text: str) -> str:
    plain = text.replace("-", "").replace("_", "").replace("/", "").isalnum()
    return text if plain and r.random() < 0.75 else quote(r, text)


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def draw(field: Field, r: random.Random, held: bool) -> tuple[Any, str]:
    """A value of ``field`` and how it is spoken."""
    kind = field.kind
    if kind in _STRINGS:
        value = _STRINGS[kind](r, held)
        return value, _spoken(r, value) if kind not in ("quoted", "hostile") else quote(r, value)
    if kind in ("integer", "number"):
        number = _integer(r) if kind == "integer" else _decimal(r)
        return number, str(number)
    if kind == "enum":
        value = pick(r, field.schema["enum"])
        return value, value
    if kind == "with":
        yes = r.random() < 0.5
        return yes, "with" if yes else "without"
    if kind == "boolean":
        yes = r.random() < 0.5
        return yes, pick(r, [("no", "yes"), ("off", "on"), ("false", "true")])[yes]
    return _compound(field, r, held)


def _compound(field: Field, r: random.Random, held: bool) -> tuple[Any, str]:
    kind = field.kind
    if kind == "nullable":
        if r.random() < 0.3:
            return None, pick(r, ["none", "null"])
        return draw(field.parts[0], r, held)
    if kind == "union":
        return draw(pick(r, field.parts), r, held)
    if kind == "range":
        low = r.randrange(1, 60)
        high = low + r.randrange(1, 60)
        return {"low": low, "high": high}, f"{low} to {high}"
    if kind == "address":
        value = {f.name: draw(f, r, held)[0] for f in field.parts}
        return value, f"{value['street']} {value['number']}, {value['city']}"
    if kind == "object":
        drawn = [(f, *draw(f, r, held)) for f in field.parts]
        said = ", ".join(mention(f, s, r) for f, _, s in drawn)
        return {f.name: v for f, v, _ in drawn}, f"({said})"
    item = {"strings": Field("", {}, "name"), "people": Field("", {}, "person")}.get(kind)
    item = item or field.parts[0]  # kind == "array"
    drawn_items = [draw(item, r, held) for _ in range(1 + int(r.random() * 3))]
    return [v for v, _ in drawn_items], _and([s for _, s in drawn_items])


def mention(field: Field, spoken: str, r: random.Random) -> str:
    """``field`` said together with its value."""
    if field.say and r.random() < 0.85:
        return field.say.format(spoken)
    if field.kind == "with":
        spoken = "yes" if spoken == "with" else "no"
    name = field.name.replace("_", " ") if r.random() < 0.5 else field.name
    return f"{name}{pick(r, [' ', ' ', ': ', ' = ', ' set to ', ' is '])}{spoken}"


def _integer(r: random.Random) -> int:
    k = r.random()
    if k < 0.6:
        return r.randrange(0, 101)
    return r.randrange(0, 10 ** (2 + int(r.random() * 5))) * (1 if k < 0.9 else -1)


def _decimal(r: random.Random) -> float | int:
    value = round(r.uniform(0, 10 ** (1 + int(r.random() * 4))), int(r.random() * 3))
    value = -value if r.random() < 0.1 else value
    return int(value) if value == int(value) else value


def _choose(r: random.Random, held: bool, make: Any) -> str:
    while words.is_held(text := make()) is not held:
        pass
    return str(text)


def _date(r: random.Random, held: bool) -> str:
    return _choose(r, held, lambda: f"{r.randrange(1970, 2060)}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}")  # fmt: skip


def _time(r: random.Random, held: bool) -> str:
    return f"{r.randrange(24):02d}:{r.randrange(60):02d}"


def _person(r: random.Random, held: bool) -> str:
    first = pick(r, FIRST) if r.random() < 0.5 else words.word(r, held).capitalize()
    return f"{first} {words.word(r, held).capitalize()}"


def _digits(r: random.Random, held: bool) -> str:
    return _choose(r, held, lambda: "".join(pick(r, "0123456789") for _ in range(3 + int(r.random() * 5))))  # fmt: skip


def _quoted(r: random.Random, held: bool) -> str:
    if r.random() < 0.08:
        return words.hostile(r, held)
    return words.phrase(r, held, NOUN + ADJ)


def _hostile(r: random.Random, held: bool) -> str:
    return words.hostile(r, held) if r.random() < 0.5 else words.phrase(r, held, NOUN + ADJ)


_STRINGS = {
    "name": words.cased,
    "ident": words.identifier,
    "email": words.email,
    "path": words.path,
    "url": words.url,
    "person": _person,
    "city": lambda r, held: (
        words.cased(r, held) if held or r.random() < 0.5 else pick(r, list(CITY))
    ),
    "weekday": lambda r, held: pick(r, WEEKDAY),
    "date": _date,
    "time": _time,
    "digits": _digits,
    "quoted": _quoted,
    "hostile": _hostile,
    "pure_hostile": words.hostile,
}

_SUFFIX = ["", "", "", "_id", "_name", "_count", "_list", "_key", "_v2"]
_SCALARS = ["name", "name", "ident", "quoted", "date", "digits", "integer", "integer", "number", "enum", "boolean", "hostile", "email", "path"]  # fmt: skip


def invent_name(r: random.Random, held: bool) -> str:
    """A made-up parameter name, in snake or camel case."""
    name = words.word(r, held)
    if r.random() < 0.35:
        other = words.word(r, held)
        name = f"{name}_{other}" if r.random() < 0.6 else name + other.capitalize()
    return name + pick(r, _SUFFIX)


def invent(r: random.Random, held: bool, depth: int = 0) -> Field:
    """A field that exists in no other transcript."""
    name = invent_name(r, held)
    k = r.random()
    if depth < 2 and k < 0.10:
        parts = invent_fields(r, held, 2 + int(r.random() * 2), depth + 1)
        return Field(name, _object(parts), "object", parts=parts)
    if depth < 1 and k < 0.15:
        inner = invent_fields(r, held, 2, 2)
        item = Field("", _object(inner), "object", parts=inner)
        return Field(name, {"type": "array", "items": item.schema}, "array", parts=(item,))
    if depth < 2 and k < 0.23:
        kind = pick(r, ["name", "integer", "ident", "quoted"])
        item = Field("", {"type": "integer" if kind == "integer" else "string"}, kind)
        return Field(name, {"type": "array", "items": item.schema}, "array", parts=(item,))
    if k < 0.29:
        kind, type_ = pick(r, [("name", "string"), ("integer", "integer"), ("quoted", "string")])
        return Field(name, {"type": [type_, "null"]}, "nullable", parts=(Field("", {}, kind),))
    if k < 0.33:
        parts = (Field("", {}, "integer"), Field("", {}, "plain"))
        return Field(name, {"type": ["integer", "string"]}, "union", parts=parts)
    return _scalar(name, pick(r, _SCALARS), r, held)


_STRINGS["plain"] = lambda r, held: words.word(r, held).capitalize()


def _scalar(name: str, kind: str, r: random.Random, held: bool) -> Field:
    types = {"integer": "integer", "number": "number", "boolean": "boolean"}
    schema: Schema = {"type": types.get(kind, "string")}
    if kind == "enum":
        schema["enum"] = list(
            dict.fromkeys(words.word(r, held) for _ in range(2 + int(r.random() * 3)))
        )
    if r.random() < 0.25:
        schema["description"] = f"The {name.replace('_', ' ')}"
    return Field(name, schema, kind)


def invent_fields(r: random.Random, held: bool, n: int, depth: int = 0) -> tuple[Field, ...]:
    """``n`` fields with different names."""
    found: dict[str, Field] = {}
    while len(found) < n:
        field = invent(r, held, depth)
        found[field.name] = field
    return tuple(found.values())
