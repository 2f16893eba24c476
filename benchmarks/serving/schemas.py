"""JSON schemas of growing complexity, made from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]

LEVELS = 5
#: Texts that are easily written wrong.
HOSTILE = (
    'say "hi"', "back\\slash", "a\nb", "tab\there", "{}[],:", "</think>", "<tool_call>", "é ü ß",
    "日本語", "🙂", "\u0000", "\u007f", "\u2028", "null", "-0",
    "'", "", " ", "\\u0041", "<|im_end|>",
)  # fmt: skip
PATTERNS = (
    "^[a-z]{2,6}$", "^[A-Z]{2}-[0-9]{3,5}$", "^(red|green|blue)( light)?$", "^#[0-9a-fA-F]{6}$",
    "^[0-9]{4}-[0-9]{2}$", r"^\d{1,3}(\.\d{1,3}){3}$", r'^"[^"\\]{0,5}"$', "^[^a-z]{1,8}$",
)  # fmt: skip
NAMES = (
    "name", "city", "count", "price", "kind", "tags", "address", "owner", "active", "code",
    "start", "end", "note", "size", "rate", "unit", "color", "path",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A schema.

    Attributes:
        level: 0 to LEVELS - 1.
        bounded: its documents have a greatest length.
    """

    level: int
    schema: Schema
    bounded: bool

    @property
    def prompt(self) -> str:
        """A request for a document, worded as the demo model knows it."""
        top = self.schema.get("properties", {})
        facts = "; ".join(f"{name} `{'abcdefg'[: 2 + i]}`" for i, name in enumerate(top))
        text = json.dumps(self.schema, ensure_ascii=False)
        return f"Write a JSON object that follows this schema: {text}\nThe facts: {facts}"


def cases(count: int, seed: int = 1) -> list[Case]:
    """``count`` schemas, of every level equally many. One in eight has no greatest length."""
    rng = random.Random(seed)
    return [_Maker(rng, i % LEVELS, i % 8 != 7).case() for i in range(count)]


class _Maker:
    def __init__(self, rng: random.Random, level: int, bounded: bool) -> None:
        self.rng, self.level, self.bounded = rng, level, bounded
        self.definitions: Schema = {}

    def case(self) -> Case:
        depth = 1 + self.level
        schema = self._object(depth, least=1)
        if self.definitions:
            schema["$defs"] = self.definitions
        return Case(self.level, schema, self.bounded)

    def _value(self, depth: int) -> Schema:
        leaves: list[Callable[[], Schema]] = [self._string, self._integer, self._flag]
        inner: list[Callable[[int], Schema]] = []
        if self.level >= 1:
            leaves += [self._enum, self._const, self._pattern, self._range, self._format]
            inner += [self._array]
        if self.level >= 2:
            inner += [self._object, self._tuple]
        if self.level >= 3:
            inner += [self._union, self._reference, self._map]
        if self.level >= 4:
            leaves += [self._hostile, self._hostile]
            inner += [self._object, self._tree]
        if depth > 0 and inner and self.rng.random() < 0.55:
            return self.rng.choice(inner)(depth - 1)
        return self.rng.choice(leaves)()

    # Leaves

    def _string(self) -> Schema:
        if not self.bounded:
            return {"type": "string"}
        low = self.rng.randint(0, 4)
        return {"type": "string", "minLength": low, "maxLength": low + self.rng.randint(0, 12)}

    def _integer(self) -> Schema:
        if not self.bounded:
            return {"type": "integer"}
        low = self.rng.randint(-2000, 2000)
        return {"type": "integer", "minimum": low, "maximum": low + self.rng.randint(0, 5000)}

    def _range(self) -> Schema:
        low = self.rng.randint(-50, 50)
        high = low + self.rng.randint(1, 90)
        if self.bounded:  # the digits of a number have no end
            return {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 1}
        return {"type": "number", "minimum": low, "exclusiveMaximum": high}

    def _flag(self) -> Schema:
        return {"type": self.rng.choice(["boolean", "null", "boolean"])}

    def _enum(self) -> Schema:
        members: list[Any] = ["a", "b c", 5, -1.5, None, True, ["x", 1], {"k": "v"}]
        return {"enum": self.rng.sample(members, self.rng.randint(1, 4))}

    def _const(self) -> Schema:
        return {"const": self.rng.choice(["fixed", 0, 12.25, [], {"a": [None]}, False])}

    def _pattern(self) -> Schema:
        return {"type": "string", "pattern": self.rng.choice(PATTERNS)}

    def _format(self) -> Schema:
        return {"type": "string", "format": self.rng.choice(["uuid", "ipv4"])}

    def _hostile(self) -> Schema:
        return {"enum": self.rng.sample(HOSTILE, self.rng.randint(1, 5))}

    # What holds others

    def _object(self, depth: int, least: int = 0) -> Schema:
        names = self.rng.sample(NAMES, self.rng.randint(least, 3 if depth else 4))
        if self.level >= 4 and self.rng.random() < 0.3:
            names.append(self.rng.choice(HOSTILE))
        properties = {name: self._value(depth) for name in names}
        required = [name for name in names if self.rng.random() < 0.8 or least]
        found: Schema = {"type": "object", "properties": properties, "required": required}
        if self.bounded or self.rng.random() < 0.7:
            found["additionalProperties"] = False
        return found

    def _array(self, depth: int) -> Schema:
        found: Schema = {"type": "array", "items": self._value(depth)}
        low = self.rng.randint(0, 2)
        limits = {"minItems": low, "maxItems": low + self.rng.randint(0, 2)}
        return {**found, **(limits if self.bounded else {"minItems": low})}

    def _tuple(self, depth: int) -> Schema:
        parts = [self._value(depth) for _ in range(self.rng.randint(1, 3))]
        exact = {"minItems": len(parts), "maxItems": len(parts)}
        return {"type": "array", "prefixItems": parts, "items": False, **exact}

    def _union(self, depth: int) -> Schema:
        return {"anyOf": [self._value(depth) for _ in range(self.rng.randint(2, 3))]}

    def _reference(self, depth: int) -> Schema:
        name = f"part{len(self.definitions)}"
        self.definitions[name] = {}
        self.definitions[name] = self._value(depth)
        return {"$ref": f"#/$defs/{name}"}

    def _map(self, depth: int) -> Schema:
        if self.bounded:  # names of one's own have no end, known ones do
            pair = {"x": self._value(0), "y": self._value(0)}
            return {"type": "object", "properties": pair, "additionalProperties": False}
        return {"type": "object", "additionalProperties": self._value(min(depth, 1))}

    def _tree(self, depth: int) -> Schema:
        """Refers to itself, unless documents must have a greatest length."""
        if self.bounded:
            return self._array(depth)
        name = f"tree{len(self.definitions)}"
        self.definitions[name] = {
            "type": "object",
            "properties": {
                "value": self._integer(),
                "next": {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/{name}"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        return {"$ref": f"#/$defs/{name}"}
