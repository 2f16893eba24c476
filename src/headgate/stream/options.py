"""How experts are read and kept. The defaults are what measures best; the rest is
there so that a benchmark can turn one mechanism off at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from headgate.stream.cost_model import CostModel

ReadMode = Literal["auto", "direct", "buffered", "mmap"]


@dataclass(frozen=True)
class StreamOptions:
    """Knobs of the expert stream; none of them changes what is computed.

    Attributes:
        read_mode: ``auto`` reads past the page cache where the file system allows it;
            ``mmap`` copies from a mapping, as a baseline.
        policy: what to evict, a name of :data:`headgate.stream.POLICIES`.
        cache: False forgets every expert once it has been multiplied.
        overlap: False waits for all reads of a layer before multiplying anything.
        lookahead: experts of the next layer that may be read ahead at a time, while that
            measures faster than not; 0 for never.
        chunk_bytes, depth: size and number of the reads in flight; 0 for the cost model's
            choice, or the queue's own where the drive has not been probed.
        merge: neighbouring records that are missing together are one read where the cost
            model says that this is faster.
        throttle: bytes per second that reads are limited to; 0 for no limit.
        drive: the cost model that reads are merged by; filled in, not chosen.
    """

    read_mode: ReadMode = "auto"
    policy: str = "lfu"
    cache: bool = True
    overlap: bool = True
    lookahead: int = 8
    chunk_bytes: int = 0
    depth: int = 0
    merge: bool = True
    throttle: float = 0.0
    drive: CostModel | None = field(default=None, compare=False)


@dataclass
class StreamStats:
    """Counts and seconds since the stream was opened.

    Attributes:
        hits, misses: routed experts found in memory, and read, or still being read.
        bytes_read: of all reads, those ahead and what lies between merged ones included.
        layers, stalls: requests computed, and those that had to wait for a read.
        wait_s: blocked on reads. compute_s: multiplying experts. keep_s: deciding,
            submitting, checking checksums, adding up.
        ahead_reads, ahead_used: experts read ahead, and those of them then routed to.
        upgrades: of the misses, experts that were in memory at fewer bits than wanted.
        refined: experts whose remaining bits were read in the background.
        tokens, wanted_bytes: tokens that were routed, and what their experts take at the
            bits that each wants them at, as if nothing were kept or shared.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    layers: int = 0
    stalls: int = 0
    wait_s: float = 0.0
    compute_s: float = 0.0
    keep_s: float = 0.0
    ahead_reads: int = 0
    ahead_used: int = 0
    upgrades: int = 0
    refined: int = 0
    tokens: int = 0
    wanted_bytes: int = 0
