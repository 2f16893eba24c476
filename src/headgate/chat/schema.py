"""Functions that a model may call, and the JSON schemas of their arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Tool = dict[str, Any]

#: Names of JSON types, as a schema writes them.
Kinds = frozenset[str]

_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly")
)
_MAX_DEPTH = 32

#: Keywords that hold values, and those that hold schemas by name.
VALUES = frozenset(("enum", "const", "default", "examples"))
NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions"))

#: What an object may say and still be closed.
_PLAIN = _ANNOTATIONS | {"type", "properties", "required", "$defs", "definitions", "$comment"}
#: Keywords that put schemas together.
_COMBINING = frozenset(("$ref", "anyOf", "oneOf", "if", "dependentSchemas"))


@dataclass(frozen=True)
class ToolCall:
    """One call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def parameters_of(tool: Tool) -> tuple[str, dict[str, Any]]:
    """A declaration's name, and its parameters' schema (empty if it has none)."""
    function = tool.get("function", tool)
    parameters = function.get("parameters")
    return str(function.get("name", "")), parameters if isinstance(parameters, dict) else {}


def properties_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter name -> schema, references at the top followed."""
    properties = resolve(parameters, parameters).get("properties")
    return properties if isinstance(properties, dict) else {}


def resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with a local ``$ref`` followed and a lone ``allOf`` opened.

    Keywords beside the reference stay in force. A reference that leads nowhere, outside
    the document or in a circle resolves to nothing known.
    """
    found = dict(schema)
    for _ in range(_MAX_DEPTH):
        parts = found.get("allOf")
        if isinstance(found.get("$ref"), str):
            target = _pointer(found.pop("$ref"), root)
        elif isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], dict):
            target = found.pop("allOf")[0]
        else:
            return found
        found = _together(target, found)
    return {}


def _together(target: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What ``own`` says and what the schema says that it refers to."""
    found = {**target, **own}
    ours, theirs = own.get("properties"), target.get("properties")
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found["properties"] = {**theirs, **ours}
    needed, more = own.get("required"), target.get("required")
    if isinstance(needed, list) and isinstance(more, list):
        found["required"] = [*more, *needed]
    return found


def _pointer(ref: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a JSON pointer in a fragment (RFC 6901) refers to."""
    node: Any = root if ref.startswith("#") else {}
    for step in ref.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def branches(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    """The alternatives of a union (``anyOf``, ``oneOf``, a list of types), flattened.

    A schema that is no union, or that says more than its alternatives do, is its own only
    branch. Anything that is no schema object becomes ``{}``.
    """
    found = resolve(schema, root) if isinstance(schema, Mapping) else {}
    if depth > _MAX_DEPTH:
        return [{}]
    for union in ("anyOf", "oneOf"):
        parts = found.get(union)
        if isinstance(parts, list) and parts and not set(found) - _ANNOTATIONS - {union}:
            return [branch for part in parts for branch in branches(part, root, depth + 1)]
    if isinstance(found.get("type"), list) and "enum" not in found and "const" not in found:
        return [{**found, "type": kind} for kind in found["type"]]
    return [found]


def kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> Kinds | None:
    """The JSON types that a value may have, None if the schema does not tell."""
    found = resolve(schema, root) if isinstance(schema, Mapping) else {}
    if depth > _MAX_DEPTH or not found:
        return None
    members = found.get("enum", [found["const"]] if "const" in found else None)
    if isinstance(members, list):
        return frozenset(kind_of(member) for member in members)
    declared = found.get("type")
    if isinstance(declared, str):
        return frozenset((declared,))
    if isinstance(declared, list):
        return frozenset(kind for kind in declared if isinstance(kind, str))
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(found.get(union), list):
            known = [kinds(part, root, depth + 1) for part in found[union]]
            return _combined(known, union == "allOf")
    return frozenset(("object",)) if "properties" in found else None


def _combined(parts: Iterable[Kinds | None], every: bool) -> Kinds | None:
    known = [part for part in parts if part is not None]
    if every:
        return frozenset.intersection(*known) if known else None
    return frozenset().union(*known) if known and len(known) == len(list(parts)) else None


def closed(schema: Any) -> Any:
    """``schema``, but objects that list their properties take no others.

    An object that says more than that stays as it is. Where schemas are put together, as
    by ``allOf``, all do: a closed part would exclude the other's properties.
    """
    return schema if _combines(schema) else _closed(schema)


def _combines(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_combines, schema))
    if not isinstance(schema, Mapping):
        return False
    beside = "properties" in schema and not _COMBINING.isdisjoint(schema)
    return beside or "allOf" in schema or any(map(_combines, schema.values()))


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    for key, value in schema.items():
        if key in NAMES and isinstance(value, Mapping):
            found[key] = {name: _closed(part) for name, part in value.items()}
        else:
            found[key] = value if key in VALUES else _closed(value)
    if found.keys() <= _PLAIN and _lists_all(found.get("properties"), found.get("required", [])):
        found["additionalProperties"] = False
    return found


def _lists_all(properties: Any, required: Any) -> bool:
    """Whether there are properties, and all required ones among them."""
    if not isinstance(properties, dict) or not isinstance(required, list):
        return False
    return bool(properties) and all(isinstance(x, str) and x in properties for x in required)


def kind_of(value: Any) -> str:
    """The JSON type of a Python value; whole numbers are integers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "integer" if isinstance(value, int) or value.is_integer() else "number"
    return "array" if isinstance(value, (list, tuple)) else "object"


def typed(text: str, schema: Any, root: Mapping[str, Any]) -> Any:
    """A parameter's text as the type that its schema declares.

    Strings stay as they are; other types are JSON, with ``true``, ``false`` and ``null`` in
    any case. A value that does not parse as its declared type stays a string, for the
    caller to complain about. Without a declared type, what parses as JSON is JSON.
    """
    allowed = kinds(schema, root)
    if allowed is not None and "string" in allowed:
        members = resolve(schema, root).get("enum")
        if allowed == {"string"} or (isinstance(members, list) and text in members):
            return text
        plain = text
    else:
        plain = text.strip()
    word = plain.lower()
    if word == "null" and (allowed is None or "null" in allowed or "string" not in allowed):
        return None
    if word in ("true", "false") and allowed is not None and "boolean" in allowed:
        return word == "true"
    try:
        value = strict_json(text)
        dump(value)
    except (ValueError, RecursionError):
        return text
    if allowed is None:
        return value
    kind = kind_of(value)
    if kind == "integer" and "integer" in allowed and "number" not in allowed:
        return int(value)
    good = kind in allowed or (kind == "integer" and "number" in allowed)
    return value if good and kind != "string" else text


def strict_json(text: str) -> Any:
    """``json.loads`` without its extensions: no NaN, no infinity.

    Raises:
        ValueError, RecursionError: it is not JSON, or nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{digits} is out of range")
    return value


def dump(value: Any) -> str:
    """JSON text, characters unescaped except where UTF-8 cannot hold them."""
    text = json.dumps(value, ensure_ascii=False)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_SURROGATE = re.compile("[\ud800-\udfff]")
