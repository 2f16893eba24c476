"""Tool declarations from files, and the tool calls in a model's answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headgate.chat.output import parse_tool_calls
from headgate.chat.schema import Tool, ToolCall
from headgate.errors import UsageError

__all__ = ["Tool", "ToolCall", "load_tools", "parse_tool_calls"]


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
