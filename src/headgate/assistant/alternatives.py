"""An answer that may take one of several forms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headgate.engine.turn import TokenConstraint
from headgate.errors import UsageError


class Alternatives:
    """Allows what any of several constraints allows; those that an accepted token rules
    out are dropped. At least one is always left."""

    def __init__(self, constraints: Sequence[TokenConstraint]) -> None:
        self._left = list(constraints)

    def mask(self) -> npt.NDArray[np.bool_] | None:
        """bool [vocab] of allowed tokens; None if every token is allowed."""
        allowed: npt.NDArray[np.bool_] | None = None
        for constraint in self._left:
            mask = constraint.mask()
            if mask is None:
                return None
            allowed = mask if allowed is None else allowed | mask
        return allowed

    def forced(self) -> list[int]:
        """Tokens of which each is the only one that may follow there."""
        return self._left[0].forced() if len(self._left) == 1 else []

    def accept(self, token: int) -> None:
        """``token`` has been chosen.

        Raises:
            UsageError: none of the constraints allows it.
        """
        left = [constraint for constraint in self._left if _accepts(constraint, token)]
        if not left:
            raise UsageError(f"token {token} is not allowed here")
        self._left = left

    @property
    def finished(self) -> bool:
        """Whether nothing more may follow."""
        return all(constraint.finished for constraint in self._left)


def _accepts(constraint: TokenConstraint, token: int) -> bool:
    try:
        constraint.accept(token)
    except UsageError:
        return False
    return True
