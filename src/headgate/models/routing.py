"""Lossy choices between the router and the experts, each off unless asked for by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.ops import Array, Ops
from headgate.ops.interface import Ints

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

#: Experts that a choice among near-ties may come from, in multiples of those that it picks.
CANDIDATES = 2
#: Stands in ids for an expert that is left out; its weight is 0.
NONE = -1


@dataclass(frozen=True)
class Choice:
    """The experts of T tokens.

    Attributes:
        ids: int32 [T, K], best first; :data:`NONE` where a token has fewer.
        weights: [T, K], of the backend; they sum to 1.
        fine: bool [T, K], those wanted at the higher of two precisions; None if there is
            only one.
    """

    ids: Ints
    weights: Array
    fine: Bools | None


@dataclass(frozen=True)
class Routing:
    """What is left of the router's choice.

    A row's result depends on its logits alone, unless it may prefer what is in memory.

    Attributes:
        experts_per_token: K.
        mass: the fewest of the K whose weights reach this share of their sum are kept, and
            renormalised; 1 keeps all.
        floor: but at least this many are kept.
        top_share: experts with at least this share of the token's weight are wanted at the
            higher precision.
        prefer_cached: experts that are not in memory may be replaced by likeliest ones
            that are, as long as the chosen lose at most this share of the weight of those
            that they stand for; 0 for never.
    """

    experts_per_token: int
    mass: float = 1.0
    floor: int = 1
    top_share: float | None = None
    prefer_cached: float = 0.0

    def choose(
        self, ops: Ops, logits: Array, drawn: Bools, held: Callable[[Ints], Bools]
    ) -> Choice:
        """The experts of each row of ``logits`` [T, E].

        Args:
            drawn: bool [T], rows that may prefer what is in memory.
            held: which of these experts are.
        """
        ids, weights = self._by_mass(ops, logits)
        k = self.experts_per_token
        if self.prefer_cached and drawn.any():
            # Apart from the first, whose bits must not depend on what else is in the call.
            wide, likely = ops.route(logits, min(CANDIDATES * k, logits.shape[1]))
            likely, ids = ops.to_numpy(likely), np.array(ids)
            for row in np.flatnonzero(drawn).tolist():
                self._prefer(ids[row], weights[row], wide[row], likely[row], held(wide[row]))
        most = int((ids != NONE).sum(-1).max())
        ids = np.ascontiguousarray(ids[:, :most])
        weights = np.ascontiguousarray(weights[:, :most])
        fine = None
        if self.top_share is not None:
            fine = (weights >= self.top_share) & (ids != NONE)
        return Choice(ids, ops.tensor(weights), fine)

    def guess(self, ops: Ops, logits: Array) -> Ints:
        """[T, K], ids as :meth:`choose` gives them if nothing is preferred."""
        return self._by_mass(ops, logits)[0]

    def _by_mass(self, ops: Ops, logits: Array) -> tuple[Ints, Floats]:
        ids, raw = ops.route(logits, self.experts_per_token)
        # A copy: the array may be the backend's own.
        weights = np.array(ops.to_numpy(raw), np.float32)
        if self.mass < 1:
            left_out = _before(weights) >= self.mass
            left_out[:, : self.floor] = False
            weights[left_out] = 0
            weights /= weights.sum(-1, keepdims=True)
            ids = np.where(left_out, NONE, ids).astype(np.int32)
        return ids, weights

    def _prefer(self, ids: Ints, weights: Floats, wide: Ints, likely: Floats, here: Bools) -> None:
        """Replace a row's experts, lightest first, by the heaviest others in memory. No
        other exchange of as many loses less.

        Args:
            ids, weights: [K], changed in place.
            wide, likely, here: [C], candidates best first, their weights, and whether they
                are in memory.
        """
        count = int((ids != NONE).sum())
        absent = [i for i in range(count - 1, -1, -1) if not here[i]]
        spare = [i for i in range(count, len(wide)) if here[i]]
        chosen, allowed = set(range(count)), self.prefer_cached * float(likely[:count].sum())
        lost = 0.0
        for out, into in zip(absent, spare, strict=False):
            lost += float(likely[out]) - float(likely[into])
            if lost > allowed:
                break
            chosen ^= {out, into}
        if max(chosen) < count:
            return  # the same bits as without
        kept = sorted(chosen)
        ids[:count] = wide[kept]
        weights[:count] = likely[kept] / likely[kept].sum()


def _before(weights: Floats) -> npt.NDArray[np.float64]:
    """[T, K], sum of the weights before each."""
    exact = weights.astype(np.float64)
    return np.cumsum(exact, -1) - exact
