"""``POST /v1/chat/completions``.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from headgate.assistant import Answer, AnswerEvent, Finished, Logprobs, Progress, Usage
from headgate.chat.output import CallArguments, CallEnd, CallStart, Content, Reasoning
from headgate.server.answers import (
    Collected,
    Service,
    cancel_all,
    collect,
    merged,
    prepare,
    progress_text,
    start,
)
from headgate.server.errors import describe, error_body
from headgate.server.openai_common import (
    arguments_text,
    chat_request,
    check_model,
    logprob_document,
    new_id,
    total_usage,
    usage_document,
)
from headgate.server.openai_fields import ChatBody
from headgate.server.sse import EventStream, comment, data, dump

DONE = b"data: [DONE]\n\n"


async def chat_completions(request: Request, body: ChatBody, service: Service) -> Response:
    """Answer a conversation."""
    assistant = service.assistant
    check_model(assistant, body.model)
    prepared = await prepare(service, chat_request(body, assistant))
    answers = await start(service, prepared, body.n or 1)
    head = {"id": new_id("chatcmpl-"), "created": int(time.time()), "model": assistant.name}
    if body.stream:
        options = body.stream_options
        usage = bool(options and options.include_usage)
        writer = ChunkWriter(head, len(answers), usage, body.logprobs is True)
        events = _stream(writer, answers, service)
        return EventStream(events, partial(cancel_all, answers))
    found = await collect(request, answers, service)
    document = {
        **head,
        "object": "chat.completion",
        "choices": [_choice(i, one, body.logprobs is True) for i, one in enumerate(found)],
        "usage": usage_document(total_usage([one.finished.usage for one in found])),
    }
    if body.metadata is not None:
        document["metadata"] = body.metadata
    return Response(dump(document), media_type="application/json")


def _choice(index: int, answer: Collected, logprobs: bool) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": answer.content or (None if answer.calls else ""),
        "refusal": None,
    }
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": new_id("call_"),
                "type": "function",
                "function": {"name": call.name, "arguments": arguments_text(call)},
            }
            for call in answer.calls
        ]
    found = [logprob_document(token) for token in answer.logprobs]
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": found, "refusal": None} if logprobs else None,
        "finish_reason": answer.finished.reason,
    }


class ChunkWriter:
    """Turns events of answers into ``chat.completion.chunk`` objects."""

    def __init__(self, head: dict[str, Any], n: int, usage: bool, logprobs: bool) -> None:
        self._head = {**head, "object": "chat.completion.chunk"}
        self._usage, self._logprobs = usage, logprobs
        self._waiting: list[list[dict[str, Any]]] = [[] for _ in range(n)]
        self._usages: list[Usage] = []

    def begin(self) -> list[dict[str, Any]]:
        """The first chunks: roles."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(i, dict(delta)) for i in range(len(self._waiting))]

    def chunks(self, index: int, event: AnswerEvent) -> list[dict[str, Any]]:
        """The chunks for an event of answer ``index``."""
        if isinstance(event, Logprobs):
            self._waiting[index] += [logprob_document(token) for token in event.tokens]
            return []
        if isinstance(event, Finished):
            self._usages.append(event.usage)
            return [self._chunk(index, {}, event.reason)]
        delta = _delta(event)
        return [] if delta is None else [self._chunk(index, delta)]

    def end(self) -> list[dict[str, Any]]:
        """The chunks after the last answer's end."""
        if not self._usage:
            return []
        usage = usage_document(total_usage(self._usages))
        return [{**self._head, "choices": [], "usage": usage}]

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = None
        if self._logprobs and (self._waiting[index] or reason is None):
            logprobs = {"content": self._waiting[index], "refusal": None}
            self._waiting[index] = []
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._usage else chunk


def _delta(event: AnswerEvent) -> dict[str, Any] | None:
    if isinstance(event, Reasoning):
        return {"reasoning_content": event.text}
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, CallStart):
        call: dict[str, Any] = {
            "index": event.index,
            "id": new_id("call_"),
            "type": "function",
            "function": {"name": event.name, "arguments": ""},
        }
        return {"tool_calls": [call]}
    if isinstance(event, CallArguments):
        function = {"arguments": event.fragment}
        return {"tool_calls": [{"index": event.index, "function": function}]}
    assert isinstance(event, (CallEnd, Progress)), event
    return None


async def _stream(
    writer: ChunkWriter, answers: Sequence[Answer], service: Service
) -> AsyncGenerator[bytes, None]:
    progress: Progress | None = None
    try:
        for chunk in writer.begin():
            yield data(chunk)
        async for item in merged(answers, service):
            if item is None:
                yield comment(progress_text(progress))
                continue
            index, event = item
            if isinstance(event, Progress):
                progress = event
            for chunk in writer.chunks(index, event):
                yield data(chunk)
        for chunk in writer.end():
            yield data(chunk)
    except Exception as error:
        # The status has long been sent; clients look for "error" in the events.
        yield data(error_body(describe(error), anthropic=False))
    yield DONE
