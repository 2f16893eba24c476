"""``/v1/messages`` and ``/v1/messages/count_tokens``.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from headgate.assistant import Answer, AnswerEvent, Finished, Usage
from headgate.chat.output import CallArguments, CallEnd, CallStart, Content, Reasoning
from headgate.server.answers import Part, Service, collect, merged, prepare, start
from headgate.server.anthropic_fields import MessagesBody, PromptBody
from headgate.server.anthropic_request import messages_request, prompt_request
from headgate.server.errors import describe, error_body
from headgate.server.openai_common import check_model, new_id
from headgate.server.sse import EventStream, dump, named

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def messages(request: Request, body: MessagesBody, service: Service) -> Response:
    """Answer a conversation."""
    assistant = service.assistant
    check_model(assistant, body.model)
    prepared = await prepare(service, messages_request(body, assistant))
    (answer,) = await start(service, prepared)
    head = {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": assistant.name,
    }
    if body.stream:
        return EventStream(_stream(head, answer, service), answer.cancel)
    (found,) = await collect(request, [answer], service)
    document = {**head, "content": [_block(part) for part in found.parts], **_stop(found.finished)}
    document["usage"] = usage_document(found.finished.usage)
    return Response(dump(document), media_type="application/json")


async def count_tokens(body: PromptBody, service: Service) -> Response:
    """Tokens of a prompt."""
    assistant = service.assistant
    check_model(assistant, body.model)
    count = await to_thread.run_sync(assistant.count_tokens, prompt_request(body))
    return Response(dump({"input_tokens": count}), media_type="application/json")


def usage_document(usage: Usage) -> dict[str, Any]:
    """Tokens from a kept prefix are counted apart from the others of the prompt."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    }


def _stop(finished: Finished) -> dict[str, Any]:
    if finished.stop is not None and finished.reason == "stop":
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop}
    return {"stop_reason": STOP_REASONS[finished.reason], "stop_sequence": None}


def _block(part: Part) -> dict[str, Any]:
    if isinstance(part, Reasoning):
        return {"type": "thinking", "thinking": part.text, "signature": ""}
    if isinstance(part, Content):
        return {"type": "text", "text": part.text}
    return {
        "type": "tool_use",
        "id": new_id("toolu_"),
        "name": part.name,
        "input": part.arguments,
    }


class BlockWriter:
    """Turns an answer's events into the events of content blocks."""

    def __init__(self) -> None:
        self._index = 0
        self._open: str | None = None

    def events(self, event: AnswerEvent) -> list[dict[str, Any]]:
        """The events that follow from one of the answer's."""
        if isinstance(event, Reasoning):
            begun = self._ensure("thinking", {"thinking": "", "signature": ""})
            return [*begun, self._delta("thinking_delta", thinking=event.text)]
        if isinstance(event, Content):
            begun = self._ensure("text", {"text": ""})
            return [*begun, self._delta("text_delta", text=event.text)]
        if isinstance(event, CallStart):
            block = {"id": new_id("toolu_"), "name": event.name, "input": {}}
            return [*self.close(), *self._ensure("tool_use", block)]
        if isinstance(event, CallArguments):
            return [self._delta("input_json_delta", partial_json=event.fragment)]
        return self.close() if isinstance(event, CallEnd) else []

    def close(self) -> list[dict[str, Any]]:
        """End the open block."""
        if self._open is None:
            return []
        self._open = None
        self._index += 1
        return [{"type": "content_block_stop", "index": self._index - 1}]

    def _ensure(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        if self._open == kind:
            return []
        closed = self.close()
        self._open = kind
        started = {"type": "content_block_start", "index": self._index}
        return [*closed, {**started, "content_block": {"type": kind, **block}}]

    def _delta(self, kind: str, **fields: str) -> dict[str, Any]:
        delta = {"type": kind, **fields}
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def _stream(
    head: dict[str, Any], answer: Answer, service: Service
) -> AsyncGenerator[bytes, None]:
    # What of the prompt is cached is not known yet; the last event has the final counts.
    usage = usage_document(Usage(prompt=answer.prompt_tokens))
    message = {**head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    writer = BlockWriter()
    try:
        yield named("message_start", {"type": "message_start", "message": message})
        async for item in merged([answer], service):
            if item is None:
                yield named("ping", {"type": "ping"})
                continue
            event = item[1]
            for out in writer.events(event):
                yield named(out["type"], out)
            if isinstance(event, Finished):
                for out in writer.close():
                    yield named(out["type"], out)
                delta = {"type": "message_delta", "delta": _stop(event)}
                yield named("message_delta", {**delta, "usage": usage_document(event.usage)})
        yield named("message_stop", {"type": "message_stop"})
    except Exception as error:
        yield named("error", error_body(describe(error), anthropic=True))
