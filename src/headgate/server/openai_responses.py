"""``/v1/responses``.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from headgate.assistant import Answer, Progress
from headgate.server.answers import Service, merged, prepare, progress_text, start
from headgate.server.errors import describe
from headgate.server.openai_common import check_model, new_id
from headgate.server.responses_events import ResponseBuilder
from headgate.server.responses_fields import ResponsesBody
from headgate.server.responses_request import own_items, responses_request, wants_logprobs
from headgate.server.responses_store import ResponseStore
from headgate.server.sse import EventStream, comment, dump, named, unless_gone


async def create_response(
    request: Request, body: ResponsesBody, service: Service, store: ResponseStore
) -> Response:
    """Answer a conversation, which may continue an earlier response."""
    assistant = service.assistant
    check_model(assistant, body.model)
    earlier: list[dict[str, Any]] = []
    if body.previous_response_id is not None:
        earlier = store.get(body.previous_response_id, "previous_response_id").conversation
    own = own_items(body, store)
    asked = responses_request(body, [*earlier, *own], assistant)
    (answer,) = await start(service, await prepare(service, asked))
    document = _document(body, assistant.name, asked.sampling.temperature, asked.sampling.top_p)
    builder = ResponseBuilder(document, wants_logprobs(body))

    def keep() -> None:
        if body.store is not False and document["status"] in ("completed", "incomplete"):
            store.put(document, own, earlier)

    if body.stream:
        events = _stream(builder, answer, service, keep)
        return EventStream(events, answer.cancel)

    async def work() -> None:
        async for item in merged([answer], service):
            if item is not None:
                builder.events(item[1])

    await unless_gone(request, work, answer.cancel)
    keep()
    return Response(dump(document), media_type="application/json")


async def _stream(
    builder: ResponseBuilder, answer: Answer, service: Service, keep: Any
) -> AsyncGenerator[bytes, None]:
    progress: Progress | None = None
    try:
        for event in builder.begin():
            yield named(event["type"], event)
        async for item in merged([answer], service):
            if item is None:
                yield comment(progress_text(progress))
                continue
            if isinstance(item[1], Progress):
                progress = item[1]
            events = builder.events(item[1])
            if events and events[-1].get("response"):
                keep()  # before the client can ask to go on from it
            for event in events:
                yield named(event["type"], event)
    except Exception as error:
        for event in builder.fail(describe(error).message):
            yield named(event["type"], event)


def _document(body: ResponsesBody, model: str, temperature: float, top_p: float) -> dict[str, Any]:
    """The response as it is before its first token: the request's settings, no output."""
    given = body.model_dump(by_alias=True, exclude_none=True)
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": None, "summary": None, **given.get("reasoning", {})},
        "store": body.store is not False,
        "temperature": temperature,
        "text": {"format": {"type": "text"}, **given.get("text", {})},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_logprobs": body.top_logprobs or 0,
        "top_p": top_p,
        "truncation": "disabled",
        "usage": None,
    }


def stored_response(response_id: str, store: ResponseStore) -> Response:
    """``GET /v1/responses/ID``."""
    return Response(dump(store.get(response_id).document), media_type="application/json")


def stored_input(response_id: str, store: ResponseStore) -> Response:
    """``GET /v1/responses/ID/input_items``, newest first as OpenAI lists them."""
    items = [
        {**item, "id": item.get("id") or f"item_{i}"}
        for i, item in enumerate(store.get(response_id).input)
    ]
    items.reverse()
    document = {
        "object": "list",
        "data": items,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
        "has_more": False,
    }
    return Response(dump(document), media_type="application/json")


def delete_response(response_id: str, store: ResponseStore) -> Response:
    """``DELETE /v1/responses/ID``."""
    store.delete(response_id)
    document = {"id": response_id, "object": "response", "deleted": True}
    return Response(dump(document), media_type="application/json")
