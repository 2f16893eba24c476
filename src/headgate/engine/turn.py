"""One answer as it grows: from logits to tokens, until it ends.

There is no model and no loop here: whoever runs the model takes ``pending``, and hands
the logits behind it to :meth:`Turn.accept`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from headgate.engine.sampling import Sampler, Sampling
from headgate.errors import UsageError

Logits = npt.NDArray[np.float32]

FinishReason = Literal["stop", "length"]

#: Alternatives of a token that may be asked for.
MOST_TOP_LOGPROBS = 128
#: Forced tokens that are appended at a time: their activations take memory.
MOST_FORCED = 16


class TokenConstraint(Protocol):
    """Which tokens may come next; see :mod:`headgate.chat.constrain`."""

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """bool [vocab] of allowed tokens, stop tokens among them where the answer may
        end; None if every token is allowed."""

    def forced(self) -> list[int]:
        """Tokens of which each is the only one that may follow there."""

    def accept(self, token: int) -> None:
        """``token`` has been chosen."""

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""


@dataclass(frozen=True)
class TurnOptions:
    """How an answer is made.

    Attributes:
        max_tokens: at most this many; None for up to the end of the context.
        sampling: how tokens are drawn.
        stop_ids: tokens that end the answer; None for those of the model.
        constraint: bounds the answer; it belongs to one answer.
        top_logprobs: None for no log-probabilities; 0 for those of the tokens chosen; more
            for as many of the likeliest beside each.
    """

    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] | None = None
    constraint: TokenConstraint | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 0:
            raise UsageError(f"max_tokens is {self.max_tokens}, it must not be negative")
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise UsageError(
                f"top_logprobs is {self.top_logprobs}, expected 0..{MOST_TOP_LOGPROBS}"
            )


@dataclass(frozen=True)
class Step:
    """A token of an answer.

    Attributes:
        logprob: natural logarithm of the probability that the model gave it, before
            temperature, penalties and constraints; None if not asked for.
        top: (token, logprob) of the likeliest tokens, likeliest first.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Turn:
    """One answer.

    Args:
        prompt: tokens to be processed before the first is chosen.
        stop_ids: the model's, for options that name none.
        allowed: bool [vocab], tokens that may be drawn at all.
        context: tokens that the sequence may hold.
        before: tokens of the sequence that have been processed already.

    Attributes:
        tokens: the whole sequence: ``before``, the prompt, the answer.
        pending: tokens of it to run through the model next.
        generated: tokens of the answer so far, without a stop token.
        finish_reason: ``stop`` at a stop token or where a constraint is fulfilled,
            ``length`` at a limit; None as long as there is more to come.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        options: TurnOptions,
        *,
        stop_ids: frozenset[int],
        allowed: npt.NDArray[np.bool_],
        context: int,
        before: Sequence[int] = (),
    ) -> None:
        self.options = options
        self.tokens = [*before, *prompt]
        self.pending = list(prompt)
        self.generated = 0
        self.finish_reason: FinishReason | None = None
        self._stop = stop_ids if options.stop_ids is None else options.stop_ids
        self._sampler = Sampler(options.sampling, allowed)
        self._context = context
        self._counts: Counter[int] = Counter()

    def accept(self, logits: Logits) -> list[Step]:
        """Go on by what the model says behind ``pending``.

        Args:
            logits: float32 [vocab].

        Returns:
            the tokens that follow: one, several if a constraint forces those behind it,
            none if the answer has ended.

        Raises:
            UsageError: a constraint leaves no token.
        """
        if self.options.max_tokens == 0:
            self._finish("length")
            return []
        constraint = self.options.constraint
        mask = None if constraint is None else constraint.mask()
        token = self._sampler.choose(logits, self.tokens, self._counts, mask)
        self.pending = []
        steps: list[Step] = []
        if self._take(token):
            steps.append(self._step(token, logits))
            # Behind forced tokens there are no logits yet that could be reported.
            if constraint is not None and self.options.top_logprobs is None:
                steps += self._forced(constraint)
        return steps

    def _forced(self, constraint: TokenConstraint) -> list[Step]:
        """The tokens that can only follow, appended."""
        steps: list[Step] = []
        for token in [] if self.finish_reason else constraint.forced()[:MOST_FORCED]:
            if self.finish_reason is not None or not self._take(token):
                break
            steps.append(Step(token))
        return steps

    def _take(self, token: int) -> bool:
        """Append ``token``, unless it ends the answer."""
        if token in self._stop:
            self._finish("stop")
            return False
        self.tokens.append(token)
        self.pending.append(token)
        self.generated += 1
        self._counts[token] += 1
        constraint = self.options.constraint
        if constraint is not None:
            constraint.accept(token)
            if constraint.finished:
                self._finish("stop")
                return True
        # The last token need not be processed, so it may lie beyond the context.
        if len(self.tokens) > self._context or self.generated == self.options.max_tokens:
            self._finish("length")
        return True

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason

    def _step(self, token: int, logits: Logits) -> Step:
        count = self.options.top_logprobs
        return Step(token) if count is None else token_step(token, logits, count)


def token_step(token: int, logits: Logits, count: int) -> Step:
    """``token`` with its log-probability and the ``count`` likeliest ones.

    Args:
        logits: float32 [vocab].
    """
    values = logits.astype(np.float64)
    largest = values.max()
    values -= largest + np.log(np.exp(values - largest).sum())
    top: list[int] = []
    if count:
        likeliest = np.argpartition(-values, min(count, len(values) - 1))[:count]
        top = likeliest[np.lexsort((likeliest, -values[likeliest]))].tolist()
    return Step(token, float(values[token]), tuple((i, float(values[i])) for i in top))
