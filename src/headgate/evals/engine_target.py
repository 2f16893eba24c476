"""The engine of this process as a target, asked the way that the server asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from headgate.assistant import (
    Assistant,
    ChatRequest,
    Finished,
    JsonObject,
    JsonSchema,
    NamedTool,
)
from headgate.chat import ToolCall
from headgate.chat.output import CallEnd, Content, Reasoning
from headgate.engine import Engine
from headgate.errors import PromptTooLong
from headgate.evals.target import Answer, DoesNotFit, FinishReason, Question, Speed
from headgate.evals.templates import store_template

_CHOICES: dict[str, Literal["auto", "none", "required"]] = {
    "auto": "auto",
    "none": "none",
    "required": "required",
}


class EngineTarget:
    """Greedy answers of one engine, several at a time if it has room for them.

    Args:
        engine: not to be used by others until :meth:`close`.
        batch: answers generated together; the engine is loaded for as many sequences.
    """

    constrains = True

    def __init__(self, engine: Engine, batch: int = 1) -> None:
        store_template(engine.store)  # complains before a thread is started
        self.engine = engine
        self.name = engine.store.path.name
        self.speed = Speed()
        self._read_before = engine.experts.stats.bytes_read
        self._assistant = Assistant(engine, sequences=batch)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Stop the scheduler's thread."""
        self._assistant.close()

    def answer(self, question: Question) -> Answer:
        """See :class:`headgate.evals.target.Target`."""
        try:
            prepared = self._assistant.prepare(chat_request(question))
            tokens = len(prepared.prompt.ids) + question.max_tokens
            if tokens > self.engine.context:
                raise DoesNotFit(f"prompt and longest answer are {tokens} tokens")
            events = list(self._assistant.start(prepared))
        except PromptTooLong as error:
            raise DoesNotFit(str(error)) from None
        text = "".join(e.text for e in events if isinstance(e, Content))
        reasoning = "".join(e.text for e in events if isinstance(e, Reasoning))
        calls = tuple(
            ToolCall(e.call.name, e.call.arguments) for e in events if isinstance(e, CallEnd)
        )
        end = next(e for e in events if isinstance(e, Finished))
        self._count(end)
        finish: FinishReason = "length" if end.reason == "length" else "stop"
        return Answer(text.strip(), calls, reasoning, finish)

    def describe(self) -> dict[str, Any]:
        """Name and lossy knobs."""
        return {"name": self.name, "lossy": self.engine.lossy}

    def _count(self, end: Finished) -> None:
        with self._lock:
            speed = self.speed
            speed.answers += 1
            speed.prompt_tokens += end.usage.prompt
            speed.generated_tokens += end.usage.completion
            speed.decode_s += end.decode_s
            speed.bytes_read = self.engine.experts.stats.bytes_read - self._read_before


def chat_request(question: Question) -> ChatRequest:
    """A question as the assistant wants it."""
    names = (tool["function"]["name"] for tool in question.tools)
    choice = question.tool_choice
    return ChatRequest(
        messages=[dict(message) for message in question.messages],
        tools=[dict(tool) for tool in question.tools],
        tool_choice=_CHOICES.get(choice) or NamedTool(choice),
        strict_tools=frozenset(names) if question.strict else frozenset(),
        response_format=_response_format(question),
        max_tokens=question.max_tokens,
        thinking=question.thinking,
    )


def _response_format(question: Question) -> JsonObject | JsonSchema | None:
    wanted = question.response_format
    if wanted is None:
        return None
    if wanted["type"] == "json_object":
        return JsonObject()
    return JsonSchema(dict(wanted["json_schema"]["schema"]))


@contextmanager
def engine_target(engine: Engine, batch: int = 1) -> Iterator[EngineTarget]:
    """An :class:`EngineTarget`, closed at the end."""
    target = EngineTarget(engine, batch)
    try:
        yield target
    finally:
        target.close()
