"""Reading the next layer's likely experts while the drive is idle.

The next layer's router, applied to the hidden state of this layer, proposes experts.
They are read behind every demand read, likeliest first, within a cap on bytes. A read
that is not used has cost drive time and perhaps evicted a useful expert; when more are
wasted than used, lookahead switches itself off.
"""

from __future__ import annotations

from collections.abc import Sequence

from headgate.stream.options import StreamStats
from headgate.stream.reader import BACKGROUND, Read, RecordReader
from headgate.stream.residency import Key, Residency

#: Reads after which the yield is judged, again and again.
JUDGED = 64


class Lookahead:
    """Background reads of one stream.

    Args:
        cap: bytes that may be on their way at a time; 0 for none at all.
    """

    def __init__(
        self, residency: Residency, reader: RecordReader, stats: StreamStats, cap: int
    ) -> None:
        self._residency, self._reader, self._stats = residency, reader, stats
        self._most = cap // reader.record_bytes
        self.active = self._most > 0
        self._under_way: dict[Key, Read] = {}
        self._unused: set[Key] = set()  # read ahead, not routed to yet
        self._reads = self._used = 0  # since the last judgement

    def suggest(self, index: int, experts: Sequence[int]) -> None:
        """Read ahead for the layer with file ``index``, likeliest expert first."""
        reads: list[Read] = []
        for expert in experts:
            key = (index, int(expert))
            if len(self._under_way) + len(reads) >= self._most:
                break
            if key in self._residency:
                continue
            slot = self._residency.place(key)
            if slot is None:
                break
            reads.append(Read(key, slot))
        if reads:
            self._under_way.update((read.key, read) for read in reads)
            self._reads += len(reads)
            self._stats.ahead_reads += len(reads)
            self._reader.submit(reads, BACKGROUND)

    def claim(self, index: int, experts: Sequence[int]) -> dict[int, Read]:
        """Called when a layer's experts are known: those among ``experts`` whose reads
        have begun, by expert. Reads that have not begun are dropped."""
        if not self.active and not self._under_way:
            return {}
        for read in self._reader.cancel_background():
            del self._under_way[read.key]
            self._residency.forget(read.key)
            self._reads -= 1
            self._stats.ahead_reads -= 1
        wanted = [(index, expert) for expert in experts]
        claimed = {key[1]: self._under_way.pop(key) for key in wanted if key in self._under_way}
        used = len(claimed) + len(self._unused.intersection(wanted))
        self._unused = {key for key in self._unused if key[0] != index}
        self._used += used
        self._stats.ahead_used += used
        self._judge()
        return claimed

    def complete(self, read: Read) -> None:
        """A read ahead has arrived before anyone asked for it."""
        self._reader.check(read)
        del self._under_way[read.key]
        self._residency.unpin(read.key)
        self._unused.add(read.key)

    def abandon(self) -> None:
        """All reads have been drained unseen."""
        for key in self._under_way:
            self._residency.forget(key)
        self._under_way.clear()

    def _judge(self) -> None:
        if self._reads < JUDGED:
            return
        self.active = 2 * self._used >= self._reads
        self._reads = self._used = 0
