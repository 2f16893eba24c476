"""The application: routes, and what stands before them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import headgate
from headgate.assistant import Assistant
from headgate.engine.budget import resident_bytes
from headgate.server import anthropic, info, openai_chat, openai_completions, openai_responses
from headgate.server.answers import Service
from headgate.server.anthropic_fields import MessagesBody, PromptBody
from headgate.server.errors import handle_error
from headgate.server.files import page_routes
from headgate.server.live import live_events
from headgate.server.metrics import Metrics
from headgate.server.openai_fields import ChatBody, CompletionBody
from headgate.server.responses_fields import ResponsesBody
from headgate.server.responses_store import ResponseStore
from headgate.server.security import Guard
from headgate.server.sse import KEEP_ALIVE_S, ClientGone, EventStream

#: Bytes of a request's body. A prompt of a million tokens has about four million.
MAX_BODY = 32 << 20
#: Of an integer in a request, as many as the largest float has.
MOST_BITS = 1024


@dataclass(frozen=True)
class ServerOptions:
    """How the server treats its clients.

    Attributes:
        api_key: what they must present; None lets everybody in.
        hosts: names in the Host header that are answered; None answers all.
        origins: web origins whose pages may read responses (CORS).
        max_body: bytes of a request.
        keep_alive_s: seconds of silence in a stream after which a comment is sent.
    """

    api_key: str | None = None
    hosts: frozenset[str] | None = None
    origins: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    keep_alive_s: float = KEEP_ALIVE_S


class StrictRequest(Request):
    """A request whose JSON is parsed strictly, with a limit on its depth."""

    async def json(self) -> Any:
        try:
            document = from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not valid JSON: {error}") from None
        if not _writable(document):
            raise HTTPException(400, "the body is not valid JSON: a number is too large")
        return document


def _writable(document: Any) -> bool:
    """Whether every number can be sent back: 1e999 is read as infinity, and Python
    refuses to print very long integers."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, float):
            if not math.isfinite(value):
                return False
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            return False
    return True


class StrictRoute(APIRoute):
    """A route whose every failure has the shape of its API."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            try:
                return await original(request)
            except ClientGone:
                return Response(status_code=499)
            except Exception as error:
                return await handle_error(request, error)

        return handler


def create_app(assistant: Assistant, options: ServerOptions | None = None) -> FastAPI:
    """The application that serves ``assistant``.

    Its ``state.stopping``, a :class:`threading.Event`, is set when the server is about to
    stop: new requests are then refused and endless streams end. Its ``state.cut_short()``
    ends answers that are still under way; their clients are told why.
    """
    options = options or ServerOptions()
    app = FastAPI(
        title="headgate",
        version=headgate.__version__,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.state.stopping, app.state.cut_short = threading.Event(), assistant.close
    metrics = Metrics(lambda: figures(assistant))
    service = Service(assistant, metrics, options.keep_alive_s)
    app.include_router(_chat_routes(service))
    app.include_router(_responses_routes(service))
    app.include_router(_info_routes(service, app.state.stopping))
    pages = page_routes()
    app.router.routes.extend(pages)
    app.add_exception_handler(HTTPException, handle_error)
    app.add_middleware(
        Guard,
        metrics=metrics,
        api_key=options.api_key,
        hosts=options.hosts,
        origins=options.origins,
        open_paths=frozenset({"/health", *(route.path for route in pages)}),
        max_body=options.max_body,
        stopping=app.state.stopping,
    )
    return app


def figures(assistant: Assistant) -> dict[str, Any]:
    """Figures of the moment for :class:`Metrics`."""
    state = assistant.scheduler.state()
    prefixes = state["prefix_cache"] or {"memory_bytes": 0, "disk_bytes": 0}
    return {
        **state,
        "memory_bytes": resident_bytes(),
        "prefix_memory_bytes": prefixes["memory_bytes"],
        "prefix_disk_bytes": prefixes["disk_bytes"],
    }


ERROR = {"content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is malformed, or a field cannot be honoured", **ERROR},
    401: {"description": "No or a wrong API key", **ERROR},
    403: {"description": "Not a host that is served", **ERROR},
    404: {"description": "No such model, response or item", **ERROR},
    413: {"description": "The body is too large", **ERROR},
    422: {"description": "Not used: what cannot be processed is a 400", **ERROR},
    429: {"description": "As many requests wait as may wait", **ERROR},
    500: {"description": "The store or the drive failed", **ERROR},
    503: {"description": "The server is shutting down", **ERROR},
}
JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
STREAM: dict[str, Any] = {"text/event-stream": {}}


def _answers(*media: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Descriptions of all responses of a route."""
    content = {name: schema for entry in media for name, schema in entry.items()}
    return {200: {"description": "The answer", "content": content}, **ERRORS}


def _router() -> APIRouter:
    return APIRouter(route_class=StrictRoute, default_response_class=Response)


def _chat_routes(service: Service) -> APIRouter:
    router = _router()

    @router.post("/v1/chat/completions", responses=_answers(JSON_OBJECT, STREAM))
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await openai_chat.chat_completions(request, body, service)

    @router.post("/v1/completions", responses=_answers(JSON_OBJECT, STREAM))
    async def completions(request: Request, body: CompletionBody) -> Response:
        return await openai_completions.completions(request, body, service)

    @router.post("/v1/messages", responses=_answers(JSON_OBJECT, STREAM))
    async def messages(request: Request, body: MessagesBody) -> Response:
        return await anthropic.messages(request, body, service)

    @router.post("/v1/messages/count_tokens", responses=_answers(JSON_OBJECT))
    async def count_tokens(body: PromptBody) -> Response:
        return await anthropic.count_tokens(body, service)

    return router


def _responses_routes(service: Service) -> APIRouter:
    router, store = _router(), ResponseStore()

    @router.post("/v1/responses", responses=_answers(JSON_OBJECT, STREAM))
    async def create_response(request: Request, body: ResponsesBody) -> Response:
        return await openai_responses.create_response(request, body, service, store)

    @router.get("/v1/responses/{response_id}", responses=_answers(JSON_OBJECT))
    async def get_response(response_id: str) -> Response:
        return openai_responses.stored_response(response_id, store)

    @router.get("/v1/responses/{response_id}/input_items", responses=_answers(JSON_OBJECT))
    async def get_input(response_id: str) -> Response:
        return openai_responses.stored_input(response_id, store)

    @router.delete("/v1/responses/{response_id}", responses=_answers(JSON_OBJECT))
    async def delete_response(response_id: str) -> Response:
        return openai_responses.delete_response(response_id, store)

    return router


def _info_routes(service: Service, stopping: threading.Event) -> APIRouter:
    router, assistant = _router(), service.assistant

    @router.get("/v1/models", responses=_answers(JSON_OBJECT))
    async def models(request: Request) -> Response:
        return info.models(request, assistant)

    @router.get("/v1/models/{model_id:path}", responses=_answers(JSON_OBJECT))
    async def model(request: Request, model_id: str) -> Response:
        return info.model(request, model_id, assistant)

    @router.get("/props", responses=_answers(JSON_OBJECT))
    async def props() -> Response:
        return info.props(assistant)

    @router.get("/health", responses=_answers(JSON_OBJECT))
    async def health() -> Response:
        return info.health(stopping.is_set())

    @router.get("/metrics", responses=_answers({"text/plain": {"schema": {"type": "string"}}}))
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=info.METRICS_TYPE)

    @router.get("/live", responses=_answers(STREAM), include_in_schema=False)
    async def live() -> Response:
        return EventStream(live_events(assistant, stopping.is_set))

    return router
