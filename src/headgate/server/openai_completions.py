"""``POST /v1/completions``: continuing a text as it is, with ``echo`` and ``logprobs``.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response

from headgate.assistant import (
    Answer,
    Assistant,
    CompletionRequest,
    Finished,
    Logprobs,
    Progress,
    TokenLogprob,
    Usage,
)
from headgate.chat.output import Content
from headgate.server.answers import (
    Collected,
    Service,
    cancel_all,
    collect,
    merged,
    progress_text,
    start_all,
)
from headgate.server.errors import ApiError, describe, error_body
from headgate.server.openai_chat import DONE
from headgate.server.openai_common import (
    check_model,
    clamp,
    new_id,
    sampling_of,
    stops_of,
    total_usage,
    usage_document,
)
from headgate.server.openai_fields import CompletionBody
from headgate.server.sse import EventStream, comment, data, dump

#: OpenAI's.
DEFAULT_MAX_TOKENS = 16


async def completions(request: Request, body: CompletionBody, service: Service) -> Response:
    """Continue one or several texts."""
    assistant, n = service.assistant, body.n or 1
    check_model(assistant, body.model)
    if body.stream and body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed: leave stream out", "stream")
    encode = partial(_encode_all, assistant, _prompts(body))
    prompts = await to_thread.run_sync(encode)
    answers: list[Answer] = []
    try:
        for ids in prompts:
            asked = _request(body, ids, assistant)
            begin = partial(assistant.complete, asked)
            answers += start_all(n, asked.sampling.seed, begin)
    except BaseException:
        cancel_all(answers)
        raise
    head = {
        "id": new_id("cmpl-"),
        "object": "text_completion",
        "created": int(time.time()),
        "model": assistant.name,
    }
    echoes = [assistant.tokenizer.decode(ids) if body.echo else "" for ids in prompts]
    echoes = [echo for echo in echoes for _ in range(n)]
    if body.stream:
        writer = _Writer(head, echoes, n, body)
        events = _stream(writer, answers, service)
        return EventStream(events, partial(cancel_all, answers))
    found = await collect(request, answers, service)
    document = {
        **head,
        "choices": [_choice(i, one, echoes[i], body) for i, one in enumerate(found)],
        "usage": usage_document(_usage([one.finished.usage for one in found], n)),
    }
    return Response(dump(document), media_type="application/json")


def _prompts(body: CompletionBody) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    ids = [token for token in prompt if isinstance(token, int)]
    return [ids] if ids else [entry for entry in prompt if not isinstance(entry, int)]


def _encode_all(assistant: Assistant, prompts: list[str | list[int]]) -> list[list[int]]:
    return [assistant.encode(prompt) for prompt in prompts]


def _request(body: CompletionBody, ids: list[int], assistant: Assistant) -> CompletionRequest:
    return CompletionRequest(
        prompt=ids,
        sampling=sampling_of(body, assistant),
        max_tokens=DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        stop=stops_of(body.stop),
        top_logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )


def _usage(usages: list[Usage], n: int) -> Usage:
    """Every prompt counts once, however many answers it has."""
    totals = [total_usage(usages[i : i + n]) for i in range(0, len(usages), n)]
    return Usage(
        sum(t.prompt for t in totals),
        sum(t.cached for t in totals),
        sum(t.completion for t in totals),
    )


def _choice(index: int, answer: Collected, echo: str, body: CompletionBody) -> dict[str, Any]:
    logprobs = None
    if body.logprobs is not None:
        tokens = [*(answer.finished.prompt_logprobs or []), *answer.logprobs]
        logprobs = logprobs_document(tokens, 0, first=bool(body.echo))
    return {
        "index": index,
        "text": echo + answer.content,
        "logprobs": logprobs,
        "finish_reason": answer.finished.reason,
    }


def logprobs_document(
    tokens: Sequence[TokenLogprob], offset: int, first: bool = False
) -> dict[str, Any]:
    """Four lists, one entry per token.

    Args:
        offset: characters of the text before these tokens.
        first: the first token begins the text, so nothing predicts it.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    unknown = [first and i == 0 for i in range(len(tokens))]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [
            None if no else clamp(t.logprob) for t, no in zip(tokens, unknown, strict=True)
        ],
        "top_logprobs": [None if no else _top(t) for t, no in zip(tokens, unknown, strict=True)],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob) -> dict[str, float]:
    top = {text: clamp(logprob) for _, text, logprob in reversed(token.top)}
    # The token itself is always there, as in OpenAI's responses.
    return {token.text: clamp(token.logprob), **top}


class _Writer:
    """Turns events of answers into completion chunks."""

    def __init__(
        self, head: dict[str, Any], echoes: list[str], n: int, body: CompletionBody
    ) -> None:
        self._head, self._echoes, self._n = head, echoes, n
        self._logprobs = body.logprobs is not None
        self._include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._waiting: list[list[TokenLogprob]] = [[] for _ in echoes]
        self._offsets = [0] * len(echoes)
        self._usages: dict[int, Usage] = {}

    def begin(self) -> list[dict[str, Any]]:
        return [self._chunk(i, echo) for i, echo in enumerate(self._echoes) if echo]

    def chunks(self, index: int, event: object) -> list[dict[str, Any]]:
        if isinstance(event, Logprobs):
            self._waiting[index] += event.tokens
        elif isinstance(event, Content):
            return [self._chunk(index, event.text)]
        elif isinstance(event, Finished):
            self._usages[index] = event.usage
            return [self._chunk(index, "", event.reason)]
        return []

    def end(self) -> list[dict[str, Any]]:
        if not self._include_usage:
            return []
        usages = [self._usages[i] for i in range(len(self._echoes))]
        return [{**self._head, "choices": [], "usage": usage_document(_usage(usages, self._n))}]

    def _chunk(self, index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            tokens, self._waiting[index] = self._waiting[index], []
            logprobs = logprobs_document(tokens, self._offsets[index])
            self._offsets[index] += sum(len(token.text) for token in tokens)
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice]}


async def _stream(
    writer: _Writer, answers: Sequence[Answer], service: Service
) -> AsyncGenerator[bytes, None]:
    progress: Progress | None = None
    try:
        for chunk in writer.begin():
            yield data(chunk)
        async for item in merged(answers, service):
            if item is None:
                yield comment(progress_text(progress))
                continue
            if isinstance(item[1], Progress):
                progress = item[1]
            for chunk in writer.chunks(*item):
                yield data(chunk)
        for chunk in writer.end():
            yield data(chunk)
    except Exception as error:
        yield data(error_body(describe(error), anthropic=False))
    yield DONE
