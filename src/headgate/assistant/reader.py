"""From tokens to the events of an answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from headgate.assistant.events import (
    AnswerEvent,
    Failed,
    Finished,
    FinishReason,
    Logprobs,
    Progress,
    TokenLogprob,
    Usage,
)
from headgate.assistant.plain import PlainParser
from headgate.assistant.stop import StopStrings
from headgate.chat import StreamDecoder, Tokenizer
from headgate.chat.output import CallEnd, Content, Event, OutputParser
from headgate.chat.schema import Tool
from headgate.engine import ticket
from headgate.engine.turn import Step
from headgate.errors import ShuttingDown

THINK_END = "</think>"


@dataclass(frozen=True)
class ReaderOptions:
    """How an answer's tokens are read.

    Attributes:
        prompt: the tokens of the prompt.
        stop_ids: tokens that end the answer and have no text.
        parse: False passes all text on as content.
        tools: declarations of the functions that may be called; without any, calls are
            content.
        thinking: whether the text begins inside the reasoning.
        one_call: end the answer after its first call.
        logprobs: report log probabilities.
    """

    prompt: Sequence[int] = ()
    stop_ids: frozenset[int] = frozenset()
    parse: bool = True
    tools: Sequence[Tool] = ()
    thinking: bool = False
    stop: tuple[str, ...] = ()
    one_call: bool = False
    logprobs: bool = False


def _parser(options: ReaderOptions) -> OutputParser | PlainParser | None:
    if not options.parse:
        return None
    if not options.tools:
        return PlainParser(options.thinking)
    return OutputParser(options.tools, thinking=options.thinking)


class AnswerReader:
    """Turns the scheduler's events into those of an answer.

    Attributes:
        done: the last event has been returned; nothing may follow.
    """

    def __init__(self, tokenizer: Tokenizer, options: ReaderOptions) -> None:
        self.done = False
        self._tokenizer, self._options = tokenizer, options
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(options.stop)
        self._parser = _parser(options)
        # Stop strings are looked for once the reasoning has ended.
        self._reasoning = options.thinking and options.parse
        self._tail = ""
        self._decoded = self._passed = 0  # characters
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()  # with the text's offset
        self._tokens = self._reasoning_tokens = self._calls = 0
        self._cached = 0
        self._began = self._first = self._last = perf_counter()

    def push(self, event: ticket.Event) -> list[AnswerEvent]:
        """The answer's events that follow from one of the scheduler's."""
        if self.done:
            return []
        if isinstance(event, ticket.Queued):
            return [Progress()]
        if isinstance(event, ticket.PromptProgress):
            self._cached = event.cached
            return [Progress(event.done, event.total, event.cached)]
        if isinstance(event, ticket.Tokens):
            return self._take(event.steps)
        self.done = True
        if isinstance(event, ticket.Failed):
            return [Failed(event.error)]
        return self._end(event.figures)

    def _take(self, steps: Sequence[Step]) -> list[AnswerEvent]:
        out: list[AnswerEvent] = []
        self._last = perf_counter()
        if self._tokens == 0:
            self._first = self._last
        for step in steps:
            if step.token in self._options.stop_ids:
                continue
            self._tokens += 1
            self._reasoning_tokens += self._reasoning
            if self._options.logprobs:
                self._waiting.append((self._decoded, self._logprob(step)))
            out += self._text(self._decoder.push(step.token))
            if self.done:
                break
        return [*self._released(), *out] if self._options.logprobs else out

    def _text(self, text: str) -> list[AnswerEvent]:
        """Pass decoded text on, through stop strings and the parser."""
        self._decoded += len(text)
        free = self._outside_stops(text)
        kept = free + self._stops.push(text[len(free) :])
        self._passed += len(kept)
        out = self._parsed(kept)
        if self._options.one_call and self._calls:
            return self._ended_early(out)
        if self._stops.found is not None:
            return self._ended_early([*out, *self._parsed_rest()])
        return out

    def _outside_stops(self, text: str) -> str:
        """The part of ``text`` that belongs to the reasoning."""
        if not self._reasoning:
            return ""
        seen = self._tail + text
        at = seen.find(THINK_END)
        if at < 0:
            self._tail = seen[-(len(THINK_END) - 1) :]
            return text
        self._reasoning = False
        return text[: at + len(THINK_END) - len(self._tail)]

    def _parsed(self, text: str) -> list[AnswerEvent]:
        if self._parser is None:
            return [Content(text)] if text else []
        out: list[AnswerEvent] = []
        for event in self._parser.push(text) if text else ():
            out.append(event)
            self._calls += isinstance(event, CallEnd)
            if self._calls and self._options.one_call:
                break
        return out

    def _parsed_rest(self) -> list[Event]:
        rest = self._parser.finish() if self._parser else []
        self._calls += sum(isinstance(event, CallEnd) for event in rest)
        return rest

    def _ended_early(self, out: list[AnswerEvent]) -> list[AnswerEvent]:
        """By a stop string or after the only call: the rest is not waited for."""
        self.done = True
        released = self._released() if self._options.logprobs else []
        reason: FinishReason = "tool_calls" if self._calls else "stop"
        return [*released, *out, self._finished(reason)]

    def _end(self, figures: ticket.TurnFigures) -> list[AnswerEvent]:
        if figures.finish_reason == "cancelled":  # and not by us, or nobody would ask
            return [Failed(ShuttingDown("the answer was cut short: the engine is shutting down"))]
        self._cached = figures.cached_tokens
        text = self._decoder.flush()
        self._decoded += len(text)
        out = self._parsed(
            text if self._reasoning else self._stops.push(text) + self._stops.flush()
        )
        if not (self._options.one_call and self._calls):
            out += self._parsed_rest()
        self._passed = self._decoded + 1  # also tokens without a text
        released = self._released() if self._options.logprobs else []
        reason: FinishReason = figures.finish_reason
        if self._calls and reason == "stop":
            reason = "tool_calls"
        return [*released, *out, self._finished(reason, figures)]

    def _finished(
        self, reason: FinishReason, figures: ticket.TurnFigures | None = None
    ) -> Finished:
        prompt = len(self._options.prompt)
        return Finished(
            reason,
            Usage(prompt, self._cached, self._tokens, self._reasoning_tokens),
            self._stops.found,
            self._prompt_logprobs(figures) if figures else None,
            self._first - self._began,
            self._last - self._first,
        )

    def _released(self) -> list[AnswerEvent]:
        """Log probabilities of the tokens whose text has been passed on."""
        ready = []
        while self._waiting and self._waiting[0][0] < self._passed:
            ready.append(self._waiting.popleft()[1])
        return [Logprobs(ready)] if ready else []

    def _logprob(self, step: Step) -> TokenLogprob:
        top = [(token, self._name(token), logprob) for token, logprob in step.top]
        return TokenLogprob(step.token, self._name(step.token), step.logprob, top)

    def _name(self, token: int) -> str:
        return self._tokenizer.decode([token])

    def _prompt_logprobs(self, figures: ticket.TurnFigures) -> list[TokenLogprob] | None:
        if figures.prompt_logprobs is None:
            return None
        return [self._logprob(step) for step in figures.prompt_logprobs]
