"""Errors in the shape of the API that was called."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from headgate.errors import (
    Busy,
    HeadgateError,
    InvalidRequest,
    PromptTooLong,
    ShuttingDown,
    UsageError,
)
from headgate.server.fields import locate
from headgate.server.sse import dump

log = logging.getLogger("headgate.server")

#: status -> type of error, in OpenAI's and in Anthropic's words
OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
CODES = {
    401: "invalid_api_key",
    413: "request_too_large",
    429: "queue_full",
    500: "internal_error",
    503: "shutting_down",
}
#: Seconds after which to try again: an answer may have ended, another server started.
RETRY_AFTER = {429: 5, 503: 10}


@dataclass(frozen=True)
class Problem:
    """What went wrong, in no API's words.

    Attributes:
        param: the field at fault.
        code: a short name for programs.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None


class ApiError(Exception):
    """Ends a request with a problem."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.problem = Problem(status, message, param, code or CODES.get(status))


def describe(error: BaseException) -> Problem:
    """The problem that an exception stands for. What was not raised on purpose is logged
    and told to nobody."""
    if isinstance(error, ApiError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), code=CODES.get(error.status_code))
    if isinstance(error, Busy):
        return Problem(429, str(error), code=CODES[429])
    if isinstance(error, ShuttingDown):
        return Problem(503, str(error), code=CODES[503])
    if isinstance(error, PromptTooLong):
        return Problem(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, InvalidRequest):
        return Problem(400, str(error), error.field, "invalid_value")
    if isinstance(error, UsageError):
        return Problem(400, str(error), code="invalid_value")
    log.error("a request failed", exc_info=error)
    # The store or the drive; the class itself stands for what nobody expected.
    if isinstance(error, HeadgateError) and type(error) is not HeadgateError:
        return Problem(500, str(error), code=type(error).__name__)
    return Problem(500, "internal error; the server's log says more", code=CODES[500])


def _invalid(error: RequestValidationError) -> Problem:
    if isinstance(error.body, bytes) or error.body is None:
        return Problem(400, "the body must be JSON, sent with Content-Type: application/json")
    param, message = locate(list(error.errors()), error.body)
    code = "unknown_parameter" if message == "unknown field" else "invalid_value"
    return Problem(400, f"{param}: {message}" if param else message, param or None, code)


def is_anthropic(scope: Scope) -> bool:
    """Whether a request speaks Anthropic's API."""
    if scope["path"].startswith("/v1/messages"):
        return True
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def error_body(problem: Problem, anthropic: bool) -> dict[str, Any]:
    """The JSON document of an error."""
    if anthropic:
        kind = ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": problem.message}}
    return {
        "error": {
            "message": problem.message,
            "type": OPENAI_TYPES.get(problem.status, "invalid_request_error"),
            "param": problem.param,
            "code": problem.code,
        }
    }


def error_response(problem: Problem, scope: Scope) -> Response:
    """The response to a failed request."""
    headers = {}
    if problem.status in RETRY_AFTER:
        headers["retry-after"] = str(RETRY_AFTER[problem.status])
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = dump(error_body(problem, is_anthropic(scope)))
    return Response(body, problem.status, headers, "application/json")


async def handle_error(request: Request, error: Exception) -> Response:
    """Exception handler of the application."""
    problem = describe(error)
    response = error_response(problem, request.scope)
    if isinstance(error, HTTPException):
        for name, value in (error.headers or {}).items():
            response.headers[name] = value
    return response
