"""A bound on reasoning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headgate.engine.turn import TokenConstraint


class ThinkingBudget:
    """Ends reasoning after a number of tokens: the token that closes it is then the only
    one allowed. The answer behind it is bounded by ``inner``, if by anything.

    Args:
        tokens: of the reasoning, without the one that closes it.
        end: the token that closes it.
        vocab: size of the vocabulary.
    """

    def __init__(self, tokens: int, end: int, vocab: int, inner: TokenConstraint | None) -> None:
        self._left, self._end, self._inner = tokens, end, inner
        self._only_end = np.zeros(vocab, np.bool_)
        self._only_end[end] = True
        self._open = True

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """bool [vocab] of allowed tokens; None if every token is allowed."""
        if self._open and self._left <= 0:
            return self._only_end
        return None if self._inner is None else self._inner.mask()

    def forced(self) -> list[int]:
        """Tokens of which each is the only one that may follow there."""
        return [] if self._open or self._inner is None else self._inner.forced()

    def accept(self, token: int) -> None:
        """``token`` has been chosen."""
        if token == self._end:
            self._open = False
        self._left -= 1
        if self._inner is not None:
            self._inner.accept(token)

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        return self._inner is not None and self._inner.finished
