"""How sure a figure is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Standard deviations of a normal distribution that hold 95 %.
Z95 = 1.959963984540054
SAMPLES = 2000

Interval = tuple[float, float]


def wilson(right: int, n: int, z: float = Z95) -> Interval:
    """The score interval of a share (Wilson, 1927): unlike right/n plus and minus a
    deviation it is never empty at 0 or 1, and never leaves them.

    Args:
        right: successes.
        n: trials; with none, everything is possible.

    Raises:
        ValueError: ``right`` is not in 0..n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} of {n}")
    if n == 0:
        return 0.0, 1.0
    share = right / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula is exact, its rounding is not.
    return (0.0 if right == 0 else middle - half), (1.0 if right == n else middle + half)


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], samples: int = SAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``a - b`` over the same prompts, with its 95 % percentile interval
    (Efron, 1979): prompts are drawn again with replacement, both answers together.

    Returns:
        difference, low, high.

    Raises:
        ValueError: the lengths differ, or there are no pairs.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    means = _resampled(difference, np.ones(len(difference)), samples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(difference.mean()), float(low), float(high)


def ratio_bootstrap(
    sums: Sequence[float], counts: Sequence[float], samples: int = SAMPLES, seed: int = 0
) -> Interval:
    """95 % interval of ``sum(sums) / sum(counts)`` when whole texts are drawn again.

    Values of one text depend on each other, so texts are what is drawn, not tokens.
    """
    if len(sums) != len(counts) or not sums:
        raise ValueError(f"{len(sums)} sums and {len(counts)} counts")
    means = _resampled(np.asarray(sums, np.float64), np.asarray(counts, np.float64), samples, seed)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _resampled(
    sums: np.ndarray[tuple[int], np.dtype[np.float64]],
    counts: np.ndarray[tuple[int], np.dtype[np.float64]],
    samples: int,
    seed: int,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    picks = np.random.default_rng(seed).integers(0, len(sums), (samples, len(sums)))
    found: np.ndarray[tuple[int], np.dtype[np.float64]] = sums[picks].sum(1) / counts[picks].sum(1)
    return found
