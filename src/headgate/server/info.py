"""What is served: models, settings, health."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import headgate
from headgate.assistant import Assistant
from headgate.server.errors import is_anthropic
from headgate.server.openai_common import check_model
from headgate.server.sse import dump

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def models(request: Request, assistant: Assistant) -> Response:
    """``GET /v1/models``, in Anthropic's form if the client speaks that."""
    if is_anthropic(request.scope):
        entry = anthropic_model(assistant)
        ends = {"first_id": entry["id"], "last_id": entry["id"], "has_more": False}
        return _json({"data": [entry], **ends})
    return _json({"object": "list", "data": [openai_model(assistant)]})


def model(request: Request, model_id: str, assistant: Assistant) -> Response:
    """``GET /v1/models/ID``."""
    check_model(assistant, model_id)
    form = anthropic_model if is_anthropic(request.scope) else openai_model
    return _json(form(assistant))


def openai_model(assistant: Assistant) -> dict[str, Any]:
    """The model, with the length of its context under the names that clients look for."""
    return {
        "id": assistant.name,
        "object": "model",
        "created": assistant.created,
        "owned_by": "headgate",
        "max_model_len": assistant.engine.context,
        "context_length": assistant.engine.context,
        "lossy": assistant.engine.lossy,
    }


def anthropic_model(assistant: Assistant) -> dict[str, Any]:
    created = datetime.fromtimestamp(assistant.created, timezone.utc)
    return {
        "type": "model",
        "id": assistant.name,
        "display_name": assistant.name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "max_input_tokens": assistant.engine.context,
        "max_tokens": assistant.engine.context,
    }


def props(assistant: Assistant) -> Response:
    """``GET /props``: the server's settings."""
    engine, sampling = assistant.engine, assistant.default_sampling
    return _json(
        {
            "model": assistant.name,
            "model_type": engine.store.manifest.model_type,
            "version": headgate.__version__,
            "context": engine.context,
            "sequences": assistant.sequences,
            "queue": assistant.scheduler.queue,
            "lossy": engine.lossy,
            "knobs": engine.knobs,
            "memory_budget_bytes": engine.budget.total,
            "default_sampling": {
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "repetition_penalty": sampling.repetition_penalty,
            },
        }
    )


def health(stopping: bool) -> Response:
    """``GET /health``: 200, or 503 while the server is shutting down."""
    document = {"status": "shutting down" if stopping else "ok"}
    return Response(dump(document), 503 if stopping else 200, media_type="application/json")


def _json(document: dict[str, Any]) -> Response:
    return Response(dump(document), media_type="application/json")
