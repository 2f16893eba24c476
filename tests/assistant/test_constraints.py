"""Alternatives and the bound on reasoning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headgate.assistant.alternatives import Alternatives
from headgate.assistant.budget import ThinkingBudget
from headgate.engine.turn import TokenConstraint
from headgate.errors import UsageError

VOCAB = 8


class Fixed:
    """Allows one sequence of tokens."""

    def __init__(self, *tokens: int) -> None:
        self._left = list(tokens)

    def mask(self) -> npt.NDArray[np.bool_] | None:
        return np.isin(np.arange(VOCAB), self._left[:1])

    def forced(self) -> list[int]:
        return list(self._left)

    def accept(self, token: int) -> None:
        if self._left[:1] != [token]:
            raise UsageError("not allowed")
        del self._left[0]

    @property
    def finished(self) -> bool:
        return not self._left


def allowed(constraint: TokenConstraint) -> list[int] | None:
    mask = constraint.mask()
    return None if mask is None else np.flatnonzero(mask).tolist()


def test_alternatives_allow_what_either_does_until_a_token_decides() -> None:
    both = Alternatives([Fixed(1, 2, 3), Fixed(1, 4)])
    assert allowed(both) == [1] and both.forced() == []
    both.accept(1)
    assert allowed(both) == [2, 4]
    both.accept(2)
    assert allowed(both) == [3] and both.forced() == [3]
    with pytest.raises(UsageError, match="token 7 is not allowed"):
        both.accept(7)
    both.accept(3)
    assert both.finished


def test_reasoning_ends_at_its_budget() -> None:
    bound = ThinkingBudget(2, 5, VOCAB, None)
    for token in (1, 1):
        assert allowed(bound) is None
        bound.accept(token)
    assert allowed(bound) == [5] and bound.forced() == []
    bound.accept(5)
    assert allowed(bound) is None and not bound.finished


def test_reasoning_may_end_earlier() -> None:
    bound = ThinkingBudget(2, 5, VOCAB, None)
    bound.accept(5)
    for token in (1, 1, 1):
        assert allowed(bound) is None
        bound.accept(token)
