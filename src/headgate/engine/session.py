"""One sequence: its state, and how it grows."""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from headgate.engine.chunks import chunk_end
from headgate.engine.sampling import Sampling
from headgate.engine.turn import FinishReason, TokenConstraint, TurnOptions
from headgate.errors import UsageError
from headgate.stream import StreamStats

if TYPE_CHECKING:
    from headgate.engine.engine import Engine


@dataclass
class Generation:
    """Figures of one :meth:`Session.generate`, complete when it has ended.

    Attributes:
        ttft_s: from the call to the first token.
        decode_s: from the first token to the last.
        finish_reason: ``stop`` at a stop token, ``length`` at a limit.
    """

    prompt_tokens: int
    generated_tokens: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0
    finish_reason: FinishReason | None = None
    hits: int = 0
    misses: int = 0
    bytes_read: int = 0

    @property
    def tokens_per_s(self) -> float:
        """Decode speed; the first token belongs to the prompt."""
        return (self.generated_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def hit_rate(self) -> float:
        """Share of routed experts that were in memory."""
        used = self.hits + self.misses
        return self.hits / used if used else 0.0

    @property
    def bytes_read_per_token(self) -> float:
        """Expert bytes read, over all tokens processed."""
        return self.bytes_read / max(1, self.prompt_tokens + self.generated_tokens)


class Session:
    """A sequence of tokens and the model's state after them.

    Attributes:
        tokens: all tokens so far.
        state: what the model remembers of them.
        at_cuts: whether nothing but whole prompts has been appended, each at a cut
            (:mod:`headgate.engine.chunks`).
        generation: figures of the last :meth:`generate`.
        restored: (length, :meth:`headgate.models.State.marks`) of a state that was read
            from a file, until :meth:`headgate.engine.PrefixCache.remember` takes it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.at_cuts = True
        self.generation: Generation | None = None
        self.restored: tuple[int, dict[int, tuple[Any, ...]]] | None = None
        self.state = engine.states.take()
        self._release = weakref.finalize(self, engine.states.give_back, self.state)
        self._release.atexit = False

    def close(self) -> None:
        """Let another sequence have the state's memory; the session must not be used any
        more. Happens by itself when the session is no longer referred to."""
        self._release()

    def append(
        self,
        ids: Sequence[int],
        chunk: int | None = None,
        all_logits: bool = False,
        drawn: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Process tokens.

        Args:
            chunk: tokens processed together; the budget's choice unless given.
            all_logits: logits after every token instead of the last.
            drawn: the tokens are of an answer; only lossy knobs tell them from a prompt's.

        Returns:
            float32 [vocab], or [len(ids), vocab].

        Raises:
            PromptTooLong: they do not fit the context. Nothing has been processed.
            UsageError: there are none, or an id is outside the vocabulary.
        """
        self.engine.check_tokens(ids, len(self.tokens))
        engine, parts = self.engine, []
        begin, end = len(self.tokens), len(self.tokens) + len(ids)
        while len(self.tokens) < end:
            start = len(self.tokens)
            if chunk is None:
                until = chunk_end(start, end, engine.budget.prompt_chunk)
            else:
                until = min(start + chunk, end)
            part = list(ids[start - begin : until - begin])
            self.at_cuts &= engine.cuts.has(self.tokens, start)
            logits = engine.model.forward(part, self.state, engine.experts, all_logits, drawn)
            self.tokens += part
            if all_logits or until == end:
                parts.append(engine.ops.to_numpy(logits))
        return np.concatenate(parts) if all_logits else parts[-1][-1]

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: frozenset[int] | None = None,
        constraint: TokenConstraint | None = None,
    ) -> Iterator[int]:
        """Append ``prompt`` and yield the tokens that follow, without the stop token.

        Args:
            max_tokens: at most this many; None for up to the end of the context.
            sampling: greedy unless given.
            stop: ids that end the answer; those of the generation config unless given.
            constraint: bounds the answer.

        Raises:
            PromptTooLong, UsageError: as :meth:`append`, on the first token.
        """
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, it must be at least 1")
        options = TurnOptions(max_tokens, sampling or Sampling(), stop, constraint)
        turn = self.engine.new_turn(prompt, options, self.tokens)
        self.generation = stats = Generation(len(prompt))
        before = StreamStats(**vars(self.engine.experts.stats))
        begin = first = time.perf_counter()
        try:
            while turn.finish_reason is None:
                steps = turn.accept(self.append(turn.pending, drawn=turn.generated > 0))
                now = time.perf_counter()
                if stats.ttft_s == 0:
                    stats.ttft_s, first = now - begin, now
                stats.decode_s = now - first
                for step in steps:
                    stats.generated_tokens += 1
                    self._count(stats, before)
                    yield step.token
            stats.finish_reason = turn.finish_reason
        finally:
            self._count(stats, before)

    def _count(self, stats: Generation, before: StreamStats) -> None:
        now = self.engine.experts.stats
        stats.hits = now.hits - before.hits
        stats.misses = now.misses - before.misses
        stats.bytes_read = now.bytes_read - before.bytes_read
