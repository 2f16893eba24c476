"""Percentiles, of values and of histograms, and the spread of repeats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

#: name -> share of the values that are no larger
SHARES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


@dataclass(frozen=True)
class Spread:
    """A figure over repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError if there are none."""
        if not values:
            raise ValueError("no values")
        return cls(statistics.median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank: the smallest value such that at least ``share`` of all values are
    no larger. Always a value that was measured.

    Raises:
        ValueError: there are no values, or the share is not in (0, 1].
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    return sorted(values)[_rank(len(values), share) - 1]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``{p50, p90, p99, max}``; zeros if there are no values."""
    if not values:
        return dict.fromkeys([*SHARES, "max"], 0.0)
    found = {name: percentile(values, share) for name, share in SHARES.items()}
    return {**found, "max": max(values)}


def histogram_percentiles(lower: Sequence[float], counts: Sequence[int]) -> dict[str, float]:
    """``{p50, p90, p99, max}`` of values of which only buckets are known.

    Each is the upper end of the bucket that holds the nearest rank, so never less than
    the true value; where buckets are a quarter of an octave, at most 19 % more.

    Args:
        lower: where each bucket starts, rising; a bucket ends where the next one starts,
            and the last one, which has no end, at its start.
        counts: values in each.
    """
    total = sum(counts)
    if not total:
        return dict.fromkeys([*SHARES, "max"], 0.0)
    ends = [float(end) for end in [*lower[1:], lower[-1]]]
    ranks = {name: _rank(total, share) for name, share in SHARES.items()}
    return {name: _bucket_end(ends, counts, rank) for name, rank in {**ranks, "max": total}.items()}


def _bucket_end(ends: Sequence[float], counts: Sequence[int], rank: int) -> float:
    seen = 0
    for end, count in zip(ends, counts, strict=True):
        seen += count
        if seen >= rank:
            return end
    raise ValueError(f"rank {rank} of {seen} values")


def _rank(total: int, share: float) -> int:
    return max(1, math.ceil(round(share * total, 9)))
