"""The roofline of decoding: what drive and memory alone would need for the same bytes.

For one token::

    drive seconds  = bytes read from the drive / bandwidth of the drive
    memory seconds = bytes that must be read from memory / bandwidth of memory

Bytes of the drive are those that were read, so the hit rate of the cache is taken as it
was. Bytes of memory are the dense weights (of the embedding table one row), the records
of the experts used, and the sequence's state. Both bandwidths are measured in the same
run: the drive with endless reads of the same records at the queue's own depth, memory
with the same number of threads.

A layer's reads cannot begin before its router has spoken, and its router not before the
layers below are done. Without prediction the two are therefore spent one after the other,
and the roofline is their **sum**. Were every expert known in advance they would overlap,
and it would be their **maximum**; that one is reported beside it.

    roofline_ratio = sum of both / measured seconds per token
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DEFINITION = (
    "roofline_ratio = (drive bytes per token / drive bandwidth + memory bytes per token / "
    "memory bandwidth) / measured seconds per token; the terms are added because a layer's "
    "reads cannot begin before its router has spoken; overlapped_ratio takes the larger term"
)

EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True)
class TokenBytes:
    """Bytes for one decoded token.

    Attributes:
        drive: read from the drive.
        dense: dense weights, of the embedding table one row.
        experts: records of the routed experts, wherever they came from.
        state: recurrent state, keys and values that are read.
    """

    drive: float
    dense: float
    experts: float
    state: float

    @property
    def memory(self) -> float:
        """Bytes that must be read from memory."""
        return self.dense + self.experts + self.state


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second of the drive and of memory."""

    drive: float
    memory: float


@dataclass(frozen=True)
class Roofline:
    """Seconds of one token; see the module."""

    drive_s: float
    memory_s: float
    measured_s: float

    @property
    def ratio(self) -> float:
        """Of the sum: 1 is as fast as the bytes allow without prediction."""
        return self._share(self.drive_s + self.memory_s)

    @property
    def overlapped_ratio(self) -> float:
        """Of the maximum: 1 is as fast as the bytes allow at all."""
        return self._share(max(self.drive_s, self.memory_s))

    @property
    def memory_ratio(self) -> float:
        """Share of memory bandwidth, over bytes that must be read."""
        return self._share(self.memory_s)

    def _share(self, seconds: float) -> float:
        return seconds / self.measured_s if self.measured_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "drive_s": self.drive_s,
            "memory_s": self.memory_s,
            "measured_s": self.measured_s,
            "ratio": self.ratio,
            "overlapped_ratio": self.overlapped_ratio,
            "memory_ratio": self.memory_ratio,
        }


def roofline(need: TokenBytes, bandwidth: Bandwidth, measured_s: float) -> Roofline:
    """The roofline of a token that took ``measured_s`` seconds."""
    drive_s = need.drive / bandwidth.drive if need.drive else 0.0
    return Roofline(drive_s, need.memory / bandwidth.memory, measured_s)


def dense_bytes_per_token(sizes: Mapping[str, int], vocab: int, tied: bool) -> float:
    """Bytes of dense weights that a token reads.

    Args:
        sizes: bytes of each dense tensor as it lies in memory.
        tied: the embedding table is the output head too, so all of it is read.
    """
    table = sum(n for name, n in sizes.items() if name.startswith(EMBEDDING))
    total = sum(sizes.values())
    return float(total) if tied else total - table + table / vocab
