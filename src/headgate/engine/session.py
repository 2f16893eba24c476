"""One sequence: its state, and how it grows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from headgate.engine.sampling import Sampler, Sampling
from headgate.errors import PromptTooLong, UsageError
from headgate.stream import StreamStats

if TYPE_CHECKING:
    from headgate.engine.engine import Engine

FinishReason = Literal["stop", "length"]


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
        generation: figures of the last :meth:`generate`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.generation: Generation | None = None
        self._state = engine.model.new_state(engine.context)

    def append(
        self, ids: Sequence[int], chunk: int | None = None, all_logits: bool = False
    ) -> npt.NDArray[np.float32]:
        """Process tokens.

        Args:
            chunk: tokens processed together; the budget's choice unless given.
            all_logits: logits after every token instead of the last.

        Returns:
            float32 [vocab], or [len(ids), vocab].

        Raises:
            PromptTooLong: they do not fit the context. Nothing has been processed.
            UsageError: there are none, or an id is outside the vocabulary.
        """
        self._check(ids)
        engine, parts = self.engine, []
        size = chunk or engine.budget.prompt_chunk
        for start in range(0, len(ids), size):
            part = list(ids[start : start + size])
            logits = engine.model.forward(part, self._state, engine.experts, all_logits)
            self.tokens += part
            if all_logits or start + size >= len(ids):
                parts.append(engine.ops.to_numpy(logits))
        return np.concatenate(parts) if all_logits else parts[-1][-1]

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise UsageError("the prompt is empty")
        vocab = self.engine.config.vocab_size
        if min(ids) < 0 or max(ids) >= vocab:
            raise UsageError(f"a token id is outside the vocabulary of {vocab}")
        total = len(self.tokens) + len(ids)
        if total > self.engine.context:
            raise PromptTooLong(
                f"the prompt makes {total} tokens, the context holds {self.engine.context}: "
                f"shorten it or raise --context (the model allows "
                f"{self.engine.config.max_position_embeddings})"
            )

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: frozenset[int] | None = None,
    ) -> Iterator[int]:
        """Append ``prompt`` and yield the tokens that follow, without the stop token.

        Args:
            max_tokens: at most this many; None for up to the end of the context.
            sampling: greedy unless given.
            stop: ids that end the answer; those of the generation config unless given.

        Raises:
            PromptTooLong, UsageError: as :meth:`append`, on the first token.
        """
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, it must be at least 1")
        stop = self.engine.stop_ids if stop is None else stop
        sampler = Sampler(sampling or Sampling(), self.engine.allowed_tokens)
        self.generation = stats = Generation(len(prompt))
        before = StreamStats(**vars(self.engine.experts.stats))
        begin = time.perf_counter()
        logits = self.append(prompt)
        try:
            while True:
                token = sampler.choose(logits, self.tokens)
                now = time.perf_counter()
                if stats.generated_tokens == 0:
                    stats.ttft_s, first = now - begin, now
                stats.decode_s = now - first
                if token in stop:
                    stats.finish_reason = "stop"
                    return
                stats.generated_tokens += 1
                self._count(stats, before)
                yield token
                full = len(self.tokens) >= self.engine.context
                if full or stats.generated_tokens == max_tokens:
                    stats.finish_reason = "length"
                    return
                logits = self.append([token])
        finally:
            self._count(stats, before)

    def _count(self, stats: Generation, before: StreamStats) -> None:
        now = self.engine.experts.stats
        stats.hits = now.hits - before.hits
        stats.misses = now.misses - before.misses
        stats.bytes_read = now.bytes_read - before.bytes_read
