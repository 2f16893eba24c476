"""Reading the remaining bits of experts that stay, while the drive is idle.

An expert that is found in memory at the lower precision has been used before and may be
used again: what its record has beyond is read into its slot, behind every demand read.
From then on it is multiplied at the higher precision.
"""

from __future__ import annotations

import sys

from headgate.errors import DamagedStore
from headgate.stream.options import StreamStats
from headgate.stream.precision import Precision
from headgate.stream.reader import BACKGROUND, Read, RecordReader
from headgate.stream.residency import Key, Residency

#: Experts on their way at a time, and at most this share of the slots: they are pinned.
MOST_REFINING, SHARE = 8, 1 / 4


class Refinement:
    """Background reads of one stream, into slots that are in use."""

    def __init__(
        self, residency: Residency, reader: RecordReader, stats: StreamStats, precision: Precision
    ) -> None:
        self._residency, self._reader, self._stats = residency, reader, stats
        self._precision = precision
        self._most = min(MOST_REFINING, int(residency.slots * SHARE))
        self._backlog: dict[Key, None] = {}  # used last comes last
        self._under_way: dict[Key, Read] = {}
        self._arrived: list[Key] = []  # still pinned
        self._damaged: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        """Whether the rest of ``key`` is on its way, so that it must stay pinned."""
        return key in self._under_way

    def want(self, key: Key) -> None:
        """``key`` has been found in memory at the lower precision."""
        if key in self._under_way or key in self._damaged:
            return
        self._backlog.pop(key, None)
        self._backlog[key] = None
        if len(self._backlog) > self._residency.slots:
            del self._backlog[next(iter(self._backlog))]

    def submit(self) -> None:
        """Begin with what was used last, as far as there is room."""
        reads: list[Read] = []
        while self._backlog and len(self._under_way) + len(reads) < self._most:
            key, _ = self._backlog.popitem()
            slot = self._residency.slot(key)
            if slot is None or self._reader.bits_in[slot] >= self._precision.high:
                continue
            self._residency.pin(key)
            reads.append(Read(key, slot, self._precision.high, self._precision.low))
        if reads:
            self._under_way.update((read.key, read) for read in reads)
            self._reader.submit(reads, BACKGROUND)

    def claim(self, key: Key) -> Read | None:
        """The read that is on its way, if there is one; it is the caller's from now on."""
        return self._under_way.pop(key, None)

    def complete(self, read: Read) -> None:
        """A read has arrived. What is damaged stays as it is: nobody has asked for more."""
        del self._under_way[read.key]
        self._arrived.append(read.key)
        try:
            self._reader.check(read)
        except DamagedStore as error:
            self._damaged.add(read.key)
            print(f"headgate: note: not refined: {error}", file=sys.stderr)
            return
        self._stats.refined += 1

    def settle(self) -> None:
        """Nothing that has arrived is being multiplied any more."""
        for key in self._arrived:
            self._residency.unpin(key)
        self._arrived.clear()

    def abandon(self) -> None:
        """All reads have been drained unseen."""
        self._arrived += self._under_way
        self._under_way.clear()
        self.settle()
