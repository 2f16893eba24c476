"""The conversation as data: what is sent to the model, saved and loaded."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headgate.chat import ToolCall, normal_messages
from headgate.errors import UsageError

Message = dict[str, Any]

#: The result of a call that has none, without which templates would not go on.
NOT_RUN = "This function was not run: the user stopped."

ROLES = ("system", "user", "assistant", "tool")


class Conversation:
    """Messages in OpenAI's form, the system message apart.

    Attributes:
        system: empty for none.
        messages: roles user, assistant and tool. Arguments of calls are JSON text.
        dropped: the last question, if its answer was stopped before anything came.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.messages: list[Message] = []
        self.dropped: str | None = None

    @property
    def all_messages(self) -> list[Message]:
        """The messages with the system message at their front."""
        return [*([{"role": "system", "content": self.system}] if self.system else ())] + [
            dict(message) for message in self.messages
        ]

    # Growing

    def ask(self, text: str) -> None:
        """A question of the user."""
        self.dropped = None
        self.messages.append({"role": "user", "content": text})

    def answer(self, content: str, reasoning: str, calls: Sequence[ToolCall]) -> list[str]:
        """An answer, or what there is of one; returns the ids that its calls get."""
        if not content and not calls:
            return []
        message: Message = {"role": "assistant", "content": content or None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [_call_message(call) for call in calls]
        self.messages.append(message)
        return [call["id"] for call in message.get("tool_calls", ())]

    def result(self, call_id: str, text: str) -> None:
        """What a call has returned."""
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def close_calls(self) -> None:
        """Give calls a result that have none, so that the conversation can go on."""
        answered = {m["tool_call_id"] for m in self.messages if m["role"] == "tool"}
        last = next((m for m in reversed(self.messages) if m["role"] != "tool"), None)
        for call in last.get("tool_calls", ()) if last else ():
            if call["id"] not in answered:
                self.result(call["id"], NOT_RUN)

    def drop_unanswered(self) -> None:
        """Take back a question that got no answer; :meth:`rewind` can ask it again."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.dropped = self.messages.pop()["content"]

    # Going back

    def rewind(self) -> bool:
        """Remove everything behind the last question; whether there is a question."""
        if self.dropped is not None:
            self.ask(self.dropped)
            return True
        at = self._last_question()
        if at is None:
            return False
        del self.messages[at + 1 :]
        return True

    def undo(self) -> str | None:
        """Remove the last question and everything behind it; returns the question."""
        if self.dropped is not None:
            text, self.dropped = self.dropped, None
            return text
        at = self._last_question()
        if at is None:
            return None
        text = str(self.messages[at]["content"])
        del self.messages[at:]
        return text

    def clear(self) -> None:
        """Remove all messages but the system message."""
        self.messages, self.dropped = [], None

    def _last_question(self) -> int | None:
        found = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        return found[-1] if found else None

    # Files

    def save(self, path: Path, **more: Any) -> None:
        """Write the conversation as a chat completions request: ``{"messages": [...]}``
        and ``more`` fields.

        Raises:
            UsageError: the file cannot be written.
        """
        text = json.dumps({**more, "messages": self.all_messages}, indent=2, ensure_ascii=False)
        partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        try:
            data = f"{text}\n".encode("utf-8", "backslashreplace")
            with os.fdopen(
                os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb"
            ) as f:
                f.write(data)
            partial.replace(path)
        except (OSError, ValueError) as error:
            partial.unlink(missing_ok=True)
            raise UsageError(f"cannot write {path}: {_reason(error)}") from None

    def load(self, path: Path) -> None:
        """Replace the conversation with a saved one, or with a plain list of messages.

        Raises:
            UsageError: the file is not such a thing; the conversation stays as it is.
        """
        messages = read_messages(path)
        system = [m["content"] for m in messages if m["role"] == "system"]
        self.system = "\n\n".join(text for text in system if text)
        self.messages = [m for m in messages if m["role"] != "system"]
        self.dropped = None
        self.close_calls()


def read_messages(path: Path) -> list[Message]:
    """The messages of a JSON file, checked.

    Raises:
        UsageError: says what is wrong with the file.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {_reason(error)}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not a JSON file") from None
    messages = raw.get("messages") if isinstance(raw, dict) else raw
    if not isinstance(messages, list):
        raise UsageError(f"{path} holds no list of messages")
    try:
        return _linked([_stored(message) for message in normal_messages(messages)])
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _stored(message: Message) -> Message:
    """A normal message with only what is kept, arguments as JSON text."""
    role = message["role"]
    if role not in ROLES:
        raise UsageError(f"a message has the role {role!r}, expected one of {', '.join(ROLES)}")
    kept: Message = {"role": role, "content": message["content"]}
    if role == "tool":
        kept["tool_call_id"] = str(message.get("tool_call_id") or "")
    if role == "assistant":
        if isinstance(message.get("reasoning_content"), str) and message["reasoning_content"]:
            kept["reasoning_content"] = message["reasoning_content"]
        if message.get("tool_calls"):
            kept["content"] = message["content"] or None
            kept["tool_calls"] = [_stored_call(call) for call in message["tool_calls"]]
    return kept


def _stored_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    found = ToolCall(str(function["name"]), dict(function["arguments"]))
    return _call_message(found, str(call.get("id") or ""))


def _linked(messages: list[Message]) -> list[Message]:
    """Messages whose calls all have results, as templates expect, in so far as they are
    followed by anything."""
    found: list[Message] = []
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                raise UsageError("a tool's message answers no call before it")
            waiting.discard(message["tool_call_id"])
        elif waiting:
            raise UsageError("a tool call has no result")
        waiting |= {call["id"] for call in message.get("tool_calls", ())}
        found.append(message)
    return found


def _call_message(call: ToolCall, call_id: str = "") -> dict[str, Any]:
    return {
        "id": call_id or f"call_{secrets.token_hex(8)}",
        "type": "function",
        "function": {
            "name": call.name,
            "arguments": json.dumps(call.arguments, ensure_ascii=False),
        },
    }


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
