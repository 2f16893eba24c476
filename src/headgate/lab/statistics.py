"""How much faster B is than A, and how sure that is.

Each pair of runs gives the logarithm of a ratio. What is estimated is their median: with a
mean, or a trimmed one, a single run among ten pairs that something else disturbed is drawn
often enough to widen the interval beyond use. The interval is the percentile bootstrap over
pairs (Efron, 1979) with expanded percentiles (Hesterberg, "What teachers should know about
the bootstrap", 2015), because plain ones are too narrow for so few pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
SAMPLES = 5_000
#: Fewer pairs say nothing: of four pairs without a difference all four point the same way
#: once in eight times.
LEAST_PAIRS = 5


@dataclass(frozen=True)
class Ratio:
    """Speed of B over speed of A.

    Attributes:
        low, high: of the 95 % interval.
        pairs: that it comes from.
    """

    ratio: float
    low: float
    high: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"x {self.ratio:.3f} ({self.low:.3f} to {self.high:.3f}, {self.pairs} pairs)"


def paired_ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio b / a of runs in pairs, with its 95 % interval.

    Args:
        a, b: speeds, positive; those at the same place are a pair.

    Raises:
        ValueError: fewer than two pairs, different lengths, or a speed that is not positive
            and finite.
    """
    speeds = np.asarray([a, b], np.float64) if len(a) == len(b) else np.empty((2, 0))
    if speeds.shape[1] < 2 or not (np.isfinite(speeds) & (speeds > 0)).all():
        raise ValueError(f"{len(a)} and {len(b)} values make no pairs of positive speeds")
    logs = np.log(speeds[1] / speeds[0])
    n = len(logs)
    picks = np.random.default_rng(seed).integers(0, n, (SAMPLES, n))
    tail = _tail(n)
    low, high = np.quantile(np.median(logs[picks], axis=1), (tail, 1 - tail))
    ratio, low, high = (float(np.exp(x)) for x in (np.median(logs), low, high))
    return Ratio(ratio, low, high, n)


def _tail(n: int) -> float:
    """Share of resampled medians beyond either end of the interval of n values."""
    z = np.sqrt(n / (n - 1)) * _student_quantile((1 + LEVEL) / 2, n - 1)
    return NormalDist().cdf(-float(z))


def _student_quantile(share: float, degrees: int) -> float:
    """Of Student's t. With t = sqrt(degrees) tan(x) its density is cos(x)**(degrees - 1),
    which a grid integrates."""
    x = np.linspace(-np.pi / 2, np.pi / 2, 20_001)
    density = np.cos(x) ** (degrees - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(degrees) * np.tan(np.interp(share, below / below[-1], x)))


def orders(pairs: int, seed: int) -> list[str]:
    """Which side of each pair runs first, ``AB`` or ``BA``.

    Random, but of every two pairs one each: what drifts steadily then cancels, and what
    comes and goes cannot follow the order.
    """
    rng = np.random.default_rng(seed)
    found: list[str] = []
    while len(found) < pairs:
        found += ["AB", "BA"] if rng.random() < 0.5 else ["BA", "AB"]
    return found[:pairs]
