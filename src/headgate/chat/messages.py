"""Messages as clients send them, made into what templates expect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headgate.errors import UsageError

Message = Mapping[str, Any]


def normal_messages(messages: Sequence[Message], developer: bool = False) -> list[dict[str, Any]]:
    """Messages in the one form that templates can rely on.

    Content is a string: text parts are joined, None is empty. Arguments of calls are
    objects. Reasoning stands under ``reasoning_content``. A tool's message has the name of
    the function that its ``tool_call_id`` refers to. System messages at the beginning are
    one, since templates allow one.

    Args:
        developer: the template knows the role; otherwise it becomes ``system``.

    Raises:
        UsageError: a message cannot be understood; says which.
    """
    found: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for number, message in enumerate(messages, 1):
        try:
            normal = _normal(message, developer)
        except UsageError as error:
            raise UsageError(f"message {number}: {error}") from None
        for call in normal.get("tool_calls", ()):
            if call.get("id"):
                names[str(call["id"])] = call["function"]["name"]
        if normal["role"] == "tool" and not normal.get("name"):
            name = names.get(str(normal.get("tool_call_id")))
            if name is not None:
                normal["name"] = name
        if len(found) == 1 and found[0]["role"] == normal["role"] == "system":
            parts = (found[0]["content"], normal["content"])
            found[0]["content"] = "\n\n".join(part for part in parts if part)
        else:
            found.append(normal)
    return found


def _normal(message: Message, developer: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError("it has no role")
    normal = dict(message)
    if normal["role"] == "developer" and not developer:
        normal["role"] = "system"
    normal["content"] = text_of(normal.get("content"))
    reasoning = normal.pop("reasoning", None)
    if not normal.get("reasoning_content") and isinstance(reasoning, str):
        normal["reasoning_content"] = reasoning
    calls = normal.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise UsageError("its tool_calls are not a list")
        normal["tool_calls"] = [_call(call) for call in calls]
    return normal


def text_of(content: Any) -> str:
    """The text of a message's content: a string, a list of text parts, or nothing.

    Raises:
        UsageError: there is something else than text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise UsageError("its content is neither text nor a list of parts")
    texts = []
    for part in content:
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, str):
            texts.append(part)
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise UsageError(f"content of type {kind} is not supported, only text is")
    return "".join(texts)


def _call(call: Any) -> dict[str, Any]:
    """Clients send arguments as a JSON string, templates iterate over a mapping."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("a tool call has no function name")
    function = dict(function)
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        try:
            function["arguments"] = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise UsageError("a tool call's arguments are not valid JSON") from None
    if not isinstance(function["arguments"], Mapping):
        raise UsageError("a tool call's arguments are not a JSON object")
    outer = dict(call) if "function" in call else {}
    return {"type": "function", **outer, "function": function}
