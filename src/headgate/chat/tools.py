"""Tool declarations, and the tool calls in a model's answer.

Two forms of a call are understood inside ``<tool_call>`` ... ``</tool_call>``:
Qwen3.5's ``<function=NAME>`` with ``<parameter=KEY>`` blocks, and the Hermes form,
a JSON object with ``name`` and ``arguments``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headgate.errors import UsageError

Tool = dict[str, Any]

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|$)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>(.*?)(?:</parameter>|(?=<parameter=)|$)", re.DOTALL)


@dataclass(frozen=True)
class ToolCall:
    """One call: the function's name and its arguments by name."""

    name: str
    arguments: dict[str, Any]


def load_tools(path: Path) -> list[Tool]:
    """Function declarations from a JSON file, in OpenAI's form.

    The file holds a list; each element is ``{"type": "function", "function": {...}}``
    or the inner object alone.

    Raises:
        UsageError: says what is wrong with the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read tools file {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"tools file {path} is not valid JSON") from None
    if not isinstance(raw, list) or not raw:
        raise UsageError(f"tools file {path} does not hold a list of functions")
    return [_tool(path, number, entry) for number, entry in enumerate(raw, 1)]


def _tool(path: Path, number: int, entry: Any) -> Tool:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"tools file {path}: function {number} has no name")
    parameters = function.get("parameters", {})
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties", {}), dict):
        raise UsageError(
            f"tools file {path}: parameters of {function['name']} are not a JSON schema object"
        )
    return {"type": "function", "function": function}


def parse_tool_calls(text: str, tools: Sequence[Tool] = ()) -> tuple[str, list[ToolCall]]:
    """Split an answer into its content and its tool calls.

    Lenient as models need it: closing tags may be missing at the end. A call that
    cannot be understood stays in the content.

    Args:
        tools: declarations, which give the types of arguments.

    Returns:
        content without calls, stripped; calls in order.
    """
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        call = _parse_call(match[1], tools)
        if call is None:
            return match[0]
        calls.append(call)
        return ""

    content = _CALL.sub(take, text)
    return content.strip(), calls


def _parse_call(body: str, tools: Sequence[Tool]) -> ToolCall | None:
    function = _FUNCTION.search(body)
    if function is None:
        return _parse_hermes(body)
    name = function[1].strip()
    schema = _properties(name, tools)
    arguments = {
        key.strip(): _typed(_strip_newlines(value), schema.get(key.strip()))
        for key, value in _PARAMETER.findall(function[2])
    }
    return ToolCall(name, arguments)


def _parse_hermes(body: str) -> ToolCall | None:
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        return None
    arguments = raw.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return ToolCall(raw["name"], arguments) if isinstance(arguments, dict) else None


def _properties(name: str, tools: Sequence[Tool]) -> Mapping[str, Any]:
    for tool in tools:
        if tool["function"]["name"] == name:
            properties = tool["function"].get("parameters", {}).get("properties", {})
            return properties if isinstance(properties, dict) else {}
    return {}


def _strip_newlines(value: str) -> str:
    return value.removeprefix("\n").removesuffix("\n")


def _typed(value: str, schema: Any) -> Any:
    """A parameter's text as the type that its schema declares.

    Strings stay as they are; other types are JSON; ``null`` in any case is None. A
    value that does not parse stays a string, for the caller to complain about.
    """
    kinds = schema.get("type") if isinstance(schema, dict) else None
    kinds = set(kinds) if isinstance(kinds, list) else {kinds}
    if not kinds - {"string", "null"} or (
        kinds == {None} and isinstance(schema, dict) and "enum" in schema
    ):
        return None if "null" in kinds and value.lower() == "null" else value
    if value.strip().lower() == "null":
        return None
    if "boolean" in kinds and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
