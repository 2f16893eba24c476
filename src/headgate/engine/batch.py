"""One pass of the model over the sequences of a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING

from headgate.engine.prefix_cache import PrefixCache
from headgate.engine.session import Session
from headgate.engine.ticket import PromptProgress, Ticket, Tokens, TurnFigures
from headgate.engine.turn import Logits, Step, Turn, token_step
from headgate.models import Part
from headgate.ops import Array
from headgate.stream import StreamStats

if TYPE_CHECKING:
    from headgate.engine.engine import Engine

#: Rows of a prompt whose logits are made at a time when all are asked for.
LOGIT_ROWS = 16


class Running:
    """A request that has been given a state.

    Attributes:
        done: tokens of the prompt that have been processed or restored.
        until: where the chunk of the prompt that is due ends.
        figures: filled as it goes.
        error: why there is no more to come.
    """

    turn: Turn
    session: Session

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.done = self.until = 0
        self.error: Exception | None = None
        self.figures = TurnFigures(prompt_tokens=len(ticket.prompt))
        if ticket.prompt_logprobs is not None:
            self.figures.prompt_logprobs = [Step(ticket.prompt[0])]
        self._first = 0.0  # time of the first token

    def start(self, engine: Engine, cache: PrefixCache | None) -> None:
        """Take a state, behind a kept prefix if there is one."""
        prompt = self.ticket.prompt
        self.turn = engine.new_turn(prompt, self.ticket.options)
        self.session = engine.new_session()
        if cache is not None and self.ticket.prompt_logprobs is None:
            self.done = self.figures.cached_tokens = cache.restore(self.session, prompt)
        self._report_progress()

    def close(self) -> None:
        """Give the state back."""
        if hasattr(self, "session"):
            self.session.close()
            del self.session

    @property
    def prompt_left(self) -> int:
        """Tokens of the prompt that are still to be processed."""
        return len(self.ticket.prompt) - self.done

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.turn.finish_reason is not None

    def part(self, cache: PrefixCache | None) -> Part:
        """What the next pass appends."""
        if not self.prompt_left:
            return Part(self.turn.pending, self.session.state, drawn=True)
        marks: tuple[int, ...] = ()
        if cache is not None and self.ticket.snapshot_at:
            prompt, positions = self.ticket.prompt, self.ticket.snapshot_at
            marks = cache.promise(prompt, self.done, self.until, positions)
        ids = self.ticket.prompt[self.done : self.until]
        return Part(ids, self.session.state, marks)

    def advance(self, engine: Engine, part: Part, x: Array) -> None:
        """The pass has appended ``part``; x [T, hidden] is what came out."""
        self.session.tokens += part.ids
        if not self.prompt_left:
            return
        if self.figures.prompt_logprobs is not None:
            self._score(engine, x, self.figures.prompt_logprobs)
        self.done += len(part.ids)
        self._report_progress()

    def keep(self, part: Part, cache: PrefixCache) -> None:
        """Keep what was copied while ``part`` was appended."""
        cache.remember(self.session)
        for position, copies in part.marked.items():
            cache.keep(self.session.tokens, self.session.state, position, copies)

    def _score(self, engine: Engine, x: Array, steps: list[Step]) -> None:
        """Log-probabilities of the prompt's tokens that follow those of x."""
        count = self.ticket.prompt_logprobs or 0
        follow = self.ticket.prompt[self.done + 1 : self.done + 1 + len(x)]
        for start in range(0, len(follow), LOGIT_ROWS):
            tokens = follow[start : start + LOGIT_ROWS]
            (logits,) = engine.model.logits([x[start : start + len(tokens)]])
            rows = engine.ops.to_numpy(logits)
            steps += [
                token_step(token, row, count) for token, row in zip(tokens, rows, strict=True)
            ]

    def accept(self, logits: Logits) -> None:
        """Go on by the logits [vocab] behind all that has been appended."""
        steps = self.turn.accept(logits)
        now = perf_counter()
        if self._first == 0:
            self._first, self.figures.ttft_s = now, now - self.ticket.submitted
        self.figures.decode_s = now - self._first
        self.figures.generated_tokens = self.turn.generated
        if self.turn.finish_reason is not None:
            self.figures.finish_reason = self.turn.finish_reason
        if steps:
            self.ticket.report(Tokens(steps))

    def _report_progress(self) -> None:
        total, cached = len(self.ticket.prompt), self.figures.cached_tokens
        self.ticket.report(PromptProgress(self.done, total, cached))


def run_batch(engine: Engine, chosen: Sequence[Running], cache: PrefixCache | None) -> None:
    """Append what is due to each sequence, in one pass, and let those go on whose prompt is
    complete. What fails for one of them alone is left in its ``error``."""
    before = StreamStats(**vars(engine.experts.stats))
    try:
        parts = [running.part(cache) for running in chosen]
        rows = engine.model.hidden(parts, engine.experts)
        for running, part, x in zip(chosen, parts, rows, strict=True):
            running.error = part.error
            if part.error is None:
                with _own_errors(running):
                    running.advance(engine, part, x)
        _share(engine.experts.stats, before, chosen, [len(part.ids) for part in parts])
        _accept(engine, chosen, rows)
        if cache is not None:  # now that everybody has got a token
            for running, part in zip(chosen, parts, strict=True):
                if running.error is None:
                    with _own_errors(running):
                        running.keep(part, cache)
    finally:
        if cache is not None:
            cache.break_promises()


def _accept(engine: Engine, chosen: Sequence[Running], rows: Sequence[Array]) -> None:
    ready = [
        (running, x[-1:])
        for running, x in zip(chosen, rows, strict=True)
        if running.error is None and not running.prompt_left
    ]
    if ready:
        logits = engine.model.logits([x for _, x in ready])
        for (running, _), row in zip(ready, logits, strict=True):
            with _own_errors(running):
                running.accept(engine.ops.to_numpy(row)[0])


@contextmanager
def _own_errors(running: Running) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        running.error = error


def _share(
    now: StreamStats, before: StreamStats, chosen: Sequence[Running], tokens: Sequence[int]
) -> None:
    for running, count in zip(chosen, tokens, strict=True):
        part, figures = count / sum(tokens), running.figures
        figures.hits += part * (now.hits - before.hits)
        figures.misses += part * (now.misses - before.misses)
        figures.bytes_read += part * (now.bytes_read - before.bytes_read)
