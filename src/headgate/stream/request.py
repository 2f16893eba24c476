"""What one layer asks of the expert stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headgate.stream.precision import Precision
from headgate.stream.reader import Read

Pairs = npt.NDArray[np.int32]


@dataclass
class Request:
    """The experts that one layer needs for a number of tokens.

    Pairs (token, rank) are sorted by expert: expert ``experts[i]`` has the pairs
    ``order[splits[i] : splits[i + 1]]``. Those before ``splits[0]`` have no expert.

    Where precision is mixed, ``bits`` has what each pair wants, and ``wants`` the most that
    any pair of each expert does.
    """

    index: int
    shape: tuple[int, int]
    experts: list[int]
    order: Pairs
    splits: list[int]
    resident: list[tuple[int, int]] = field(default_factory=list)  # (i, slot)
    waiting: deque[int] = field(default_factory=deque)  # i, not submitted yet
    reading: dict[int, Read] = field(default_factory=dict)  # by expert
    bits: npt.NDArray[np.int8] | None = None
    wants: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, index: int, ids: Pairs) -> Request:
        """Of the experts ``ids`` [T, K], -1 for none."""
        # np.unique would do it, in three times the time, for every layer of every token.
        flat = ids.ravel()
        order = flat.argsort(kind="stable").astype(np.int32)
        found = flat[order]
        starts = [0, *((found[1:] != found[:-1]).nonzero()[0] + 1).tolist()]
        experts = found[starts].tolist()
        if experts[0] < 0:
            experts, starts = experts[1:], starts[1:]
        return cls(index, (ids.shape[0], ids.shape[1]), experts, order, [*starts, len(flat)])

    def want(self, fine: npt.NDArray[np.bool_] | None, precision: Precision) -> None:
        """Note at how many bits each pair wants its expert: the higher where ``fine``."""
        self.bits = np.full(len(self.order), precision.low, np.int8)
        if fine is not None:
            self.bits[fine.ravel()] = precision.high
        self.wants = np.maximum.reduceat(self.bits[self.order], self.splits[:-1]).tolist()

    def want_all(self, bits: int) -> None:
        """Note that every pair wants its expert at so many bits."""
        self.bits = np.full(len(self.order), bits, np.int8)
        self.wants = [bits] * len(self.experts)

    def pairs(self, i: int) -> Pairs:
        """The pairs of expert ``experts[i]``."""
        return self.order[self.splits[i] : self.splits[i + 1]]

    def uses(self, i: int) -> int:
        """Tokens that use expert ``experts[i]``."""
        return self.splits[i + 1] - self.splits[i]

    def nbytes(self, sizes: Mapping[int, int]) -> int:
        """What all pairs take at the bits that they want, each by itself.

        Args:
            sizes: bytes of an expert by its bits; a single one if precision is not mixed.
        """
        if self.bits is None:
            (size,) = sizes.values()
            return (len(self.order) - self.splits[0]) * size
        wanted = self.bits[self.order[self.splits[0] :]]
        return sum(int((wanted == bits).sum()) * size for bits, size in sizes.items())

    def by_precision(
        self,
        experts: Sequence[tuple[int, int]],
        precision: Precision,
        resident: Sequence[int] | None,
    ) -> dict[int, list[tuple[int, Pairs]]]:
        """bits -> (slot, pairs) of the experts that are multiplied at these bits.

        A pair gets what it wants even if more is in memory, so that its result depends
        neither on the cache nor on who else uses the expert.

        Args:
            experts: (i, slot).
            resident: bits in each slot; every pair gets those instead.
        """
        if self.bits is None:
            return {precision.high: [(slot, self.pairs(i)) for i, slot in experts]}
        found: dict[int, list[tuple[int, Pairs]]] = {}
        for i, slot in experts:
            pairs = self.pairs(i)
            wanted = self.bits[pairs] if resident is None else np.full(len(pairs), resident[slot])
            for bits in precision.all:
                mine = pairs[wanted == bits]
                if len(mine):
                    found.setdefault(bits, []).append((slot, mine))
        return found
