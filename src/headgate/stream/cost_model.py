"""What reading costs: a formula with five numbers, fitted to a probe of the drive.

One read of s bytes takes ``latency + s / stream`` when the drive has nothing else to do
(Alizadeh et al., *LLM in a flash*, 2023). Of d reads in flight the drive serves as many
at once as it can; a read then costs the larger of its share of that time and of what the
drive as a whole can do. Near the bend both count, which a power mean expresses::

    alone(s)    = latency + s / stream
    busy(s)     = overhead + s / bandwidth
    t(s, d)     = ((alone(s) / d)**sharpness + busy(s)**sharpness) ** (1 / sharpness)
    T(n, s, d)  = n * t(s, min(n, d))
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ITERATIONS = 200
#: How much of a number's distance from where its search began counts as an error. A drive
#: that one read keeps busy says nothing about a lone read's rate, which stays put then.
PULL = 0.05


@dataclass(frozen=True)
class CostModel:
    """The five numbers of the formula.

    Attributes:
        latency: seconds until a lone read's first byte.
        stream: bytes per second of a lone read.
        overhead: seconds that each read costs a busy drive.
        bandwidth: bytes per second of a busy drive.
        sharpness: of the bend between the two; at least 1.
    """

    latency: float
    stream: float
    overhead: float
    bandwidth: float
    sharpness: float

    def seconds(self, reads: float, nbytes: float, depth: float) -> float:
        """The time of ``reads`` reads of ``nbytes`` bytes, at most ``depth`` in flight."""
        if reads <= 0:
            return 0.0
        each = _formula(_numbers(self), np.array([nbytes]), np.array([min(reads, depth)]))
        return float(reads * each[0])

    def bytes_per_second(self, nbytes: float, depth: float) -> float:
        """Rate of an endless row of reads of ``nbytes`` bytes, ``depth`` in flight."""
        return nbytes * depth / self.seconds(depth, nbytes, depth)

    def depth_for(self, nbytes: float, share: float = 0.95, limit: int = 256) -> int:
        """The smallest depth that reaches ``share`` of what reads of that size reach at
        ``limit``."""
        goal = share * self.bytes_per_second(nbytes, limit)
        depths = range(1, limit)
        return next((d for d in depths if self.bytes_per_second(nbytes, d) >= goal), limit)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> CostModel:
        """Raises ValueError unless ``raw`` has the five numbers, all positive."""
        values = {field.name: raw.get(field.name) for field in fields(cls)}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name} of the cost model is {value!r}")
        return cls(**values)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> CostModel | None:
        """The model in a file that `headgate probe` saved; None if there is none or it is
        unusable."""
        try:
            return cls.from_dict(json.loads(path.read_bytes())["cost_model"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def fit(nbytes: Floats, depths: Floats, seconds: Floats) -> CostModel:
    """The model that fits measurements best, by least squares of the time's logarithm.

    Levenberg-Marquardt over the logarithms of the numbers, which keeps them positive and
    makes each count for its relative error.

    Args:
        nbytes, depths: of each measurement.
        seconds: per read, in a row of many.

    Raises:
        ValueError: fewer than five measurements, or one that is not positive.
    """
    nbytes, depths, seconds = (np.asarray(x, np.float64) for x in (nbytes, depths, seconds))
    if len(seconds) < len(fields(CostModel)) or min(map(np.min, (nbytes, depths, seconds))) <= 0:
        raise ValueError("a cost model needs five measurements, all positive")
    rates = nbytes / seconds
    alone = depths == depths.min()
    stream = float(rates[alone].max())
    smallest = alone & (nbytes == nbytes[alone].min())
    latency = max(1e-7, float((seconds - nbytes / stream)[smallest].mean()))
    start = CostModel(latency, 2 * stream, latency / 50, float(rates.max()), 3.0)
    return _unpack(_least_squares(_pack(start), nbytes, depths, np.log(seconds)))


def relative_errors(model: CostModel, nbytes: Floats, depths: Floats, seconds: Floats) -> Floats:
    """|fitted / measured - 1| of each measurement; arguments as of :func:`fit`."""
    return np.abs(_formula(_numbers(model), nbytes, depths) / seconds - 1)


def _formula(numbers: Floats, nbytes: Floats, depths: Floats) -> Floats:
    latency, stream, overhead, bandwidth, sharpness = numbers
    alone = np.log((latency + nbytes / stream) / depths)
    busy = np.log(overhead + nbytes / bandwidth)
    # The power mean in logarithms, so that no power overflows.
    mean: Floats = np.exp(np.logaddexp(sharpness * alone, sharpness * busy) / sharpness)
    return mean


def _numbers(model: CostModel) -> Floats:
    return np.array([getattr(model, field.name) for field in fields(model)])


def _pack(model: CostModel) -> Floats:
    numbers = _numbers(model)
    numbers[-1] -= 1  # sharpness is at least 1
    return np.log(numbers)


def _unpack(logs: Floats) -> CostModel:
    numbers = np.exp(logs)
    numbers[-1] += 1
    return CostModel(*map(float, numbers))


def _least_squares(logs: Floats, nbytes: Floats, depths: Floats, target: Floats) -> Floats:
    begin = logs

    def residual(at: Floats) -> Floats:
        off = np.log(_formula(_numbers(_unpack(at)), nbytes, depths)) - target
        return np.concatenate([off, PULL * (at - begin)])

    damping, error = 1e-2, residual(logs)
    for _ in range(ITERATIONS):
        steps = 1e-4 * np.eye(len(logs))
        slopes = np.stack([(residual(logs + step) - error) / 1e-4 for step in steps], axis=1)
        normal = slopes.T @ slopes
        normal += damping * np.diag(np.diag(normal))
        step = np.clip(np.linalg.solve(normal, -slopes.T @ error), -1, 1)
        trial = np.clip(logs + step, -40, 40)
        moved = residual(trial)
        if moved @ moved < error @ error:
            gain = 1 - (moved @ moved) / (error @ error)
            logs, error, damping = trial, moved, max(damping / 3, 1e-9)
            if gain < 1e-9:
                break
        else:
            damping *= 4
            if damping > 1e9:
                break
    return logs
