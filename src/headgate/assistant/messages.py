"""Messages as chat templates expect them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from headgate.assistant.request import Message
from headgate.errors import InvalidRequest

SYSTEM_ROLES = ("system", "developer")


def for_template(messages: Sequence[Message]) -> list[Message]:
    """Messages in the form and order that templates accept.

    Templates know one system message, the first, and no developer; so all of them are
    joined into one, in order. Arguments of calls become objects, absent content the
    empty string.

    Raises:
        InvalidRequest: a call's arguments are not a JSON object.
    """
    system = [str(m["content"]) for m in messages if m["role"] in SYSTEM_ROLES and m["content"]]
    rest = [_plain(number, m) for number, m in enumerate(messages) if m["role"] not in SYSTEM_ROLES]
    return [{"role": "system", "content": "\n\n".join(system)}, *rest] if system else rest


def _plain(number: int, message: Message) -> Message:
    out = {**message, "content": message.get("content") or ""}
    if message.get("tool_calls"):
        out["tool_calls"] = [
            {**call, "function": _function(f"messages[{number}].tool_calls[{i}]", call["function"])}
            for i, call in enumerate(message["tool_calls"])
        ]
    return out


def _function(where: str, function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    where += ".function.arguments"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise InvalidRequest(where, f"{where} is not valid JSON") from None
    if not isinstance(arguments, dict):
        raise InvalidRequest(where, f"{where} is not a JSON object")
    return {**function, "arguments": arguments}
