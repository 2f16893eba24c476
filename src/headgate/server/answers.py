"""Answers of an assistant in an event loop: started, merged, collected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from anyio import to_thread
from starlette.requests import Request

from headgate.assistant import (
    Answer,
    AnswerEvent,
    Assistant,
    ChatRequest,
    Failed,
    Finished,
    Logprobs,
    Prepared,
    Progress,
    TokenLogprob,
)
from headgate.chat import ToolCall
from headgate.chat.output import CallEnd, Content, Reasoning
from headgate.server.metrics import Metrics
from headgate.server.sse import unless_gone

#: ``n`` answers get seeds this far apart: neighbours would be neighbours' answers.
SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    assistant: Assistant
    metrics: Metrics
    keep_alive_s: float


Part = Reasoning | Content | ToolCall


@dataclass
class Collected:
    """A complete answer: its parts in order, of which no two neighbours are both text of
    the same kind."""

    finished: Finished
    parts: list[Part] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, event: AnswerEvent) -> None:
        """Take in the next event."""
        if isinstance(event, Logprobs):
            self.logprobs += event.tokens
        elif isinstance(event, CallEnd):
            self.parts.append(event.call)
        elif isinstance(event, (Reasoning, Content)):
            last = self.parts[-1] if self.parts else None
            if isinstance(last, (Reasoning, Content)) and type(last) is type(event):
                self.parts[-1] = type(event)(last.text + event.text)
            else:
                self.parts.append(event)

    @property
    def reasoning(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Reasoning))

    @property
    def content(self) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @property
    def calls(self) -> list[ToolCall]:
        return [part for part in self.parts if isinstance(part, ToolCall)]


async def prepare(service: Service, request: ChatRequest) -> Prepared:
    """Render a request, off the event loop."""
    return await to_thread.run_sync(service.assistant.prepare, request)


async def start(service: Service, prepared: Prepared, n: int = 1) -> list[Answer]:
    """``n`` answers to a request, or none at all. Off the event loop: grammars may take
    time to compile."""
    seed = prepared.request.sampling.seed
    begin = partial(service.assistant.start, prepared)
    return await to_thread.run_sync(start_all, n, seed, begin)


def start_all(n: int, seed: int | None, start: Callable[[int | None], Answer]) -> list[Answer]:
    """``n`` answers to one request, or none at all.

    Args:
        start: starts one with a seed, or with the request's if that is None.
    """
    answers: list[Answer] = []
    try:
        for i in range(n):
            own = None if seed is None or i == 0 else (seed + i * SEED_STRIDE) % (1 << 63)
            answers.append(start(own))
    except BaseException:
        cancel_all(answers)
        raise
    return answers


def cancel_all(answers: Sequence[Answer]) -> None:
    """Nobody waits for them any more."""
    for answer in answers:
        answer.cancel()


async def merged(
    answers: Sequence[Answer], service: Service
) -> AsyncGenerator[tuple[int, AnswerEvent] | None, None]:
    """(index, event) of all answers as they come, None after a silence.

    Cancels what is not finished when it is closed.

    Raises:
        Exception: what an answer failed with.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[int, AnswerEvent]] = asyncio.Queue()
    getting: asyncio.Future[tuple[int, AnswerEvent]] | None = None

    def call(function: Callable[..., None], *arguments: object) -> None:
        try:
            loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has been closed; nobody listens
            answers[0].cancel()

    try:
        for i, answer in enumerate(answers):
            answer.follow(lambda event, i=i: queue.put_nowait((i, event)), call)  # type: ignore[misc]
        left = len(answers)
        while left:
            # Not wait_for: up to Python 3.11 it loses a cancellation that meets an event.
            getting = getting or asyncio.ensure_future(queue.get())
            if not (await asyncio.wait({getting}, timeout=service.keep_alive_s))[0]:
                yield None
                continue
            (index, event), getting = getting.result(), None
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                left -= 1
                service.metrics.answered(event)
            yield index, event
    finally:
        if getting is not None:
            getting.cancel()
        cancel_all(answers)


async def collect(request: Request, answers: Sequence[Answer], service: Service) -> list[Collected]:
    """All answers, complete.

    Raises:
        ClientGone: the client went away first; the answers have been cancelled.
    """

    async def work() -> list[Collected]:
        parts: list[list[AnswerEvent]] = [[] for _ in answers]
        async for item in merged(answers, service):
            if item is not None:
                parts[item[0]].append(item[1])
        return [_collected(events) for events in parts]

    return await unless_gone(request, work, partial(cancel_all, answers))


def _collected(events: Sequence[AnswerEvent]) -> Collected:
    finished = events[-1]
    assert isinstance(finished, Finished)
    out = Collected(finished)
    for event in events:
        out.add(event)
    return out


def progress_text(progress: Progress | None) -> str:
    """A keep-alive comment's text."""
    if progress is None or not progress.total:
        return "waiting"
    return f"prompt {progress.done} of {progress.total} tokens"
