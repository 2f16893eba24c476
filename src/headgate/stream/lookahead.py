"""Reading the next layer's likely experts while the drive is idle.

The next layer's router, applied to the hidden state of this layer, proposes experts.
They are read behind every demand read, likeliest first, within a cap. Whether that pays
cannot be known beforehand: a read that is not used has cost drive time and perhaps
evicted a useful expert, and one that is used may still have delayed a demand read. So
it is tried: stretches of tokens with and without are timed in turn, and the faster way
is kept until the next trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

from headgate.stream.options import StreamStats
from headgate.stream.reader import BACKGROUND, Read, RecordReader
from headgate.stream.residency import Key, Residency

#: Layers that one stretch of a trial times.
STRETCH = 120
#: A trial: with and without in turn, beginning without.
PATTERN = (False, True, False, True)
#: Layers until the next trial.
HOLD = 12_000
#: Time with, of time without, below which it is kept up: less is likelier to be chance.
WORTH = 0.98
#: Sequences that may decode together and still be read ahead for. Beyond, their own
#: experts keep the drive busy.
MOST_TOKENS = 8


class Trial:
    """Decides between two ways by timing both."""

    def __init__(self) -> None:
        self._stretch = 0  # index into PATTERN; beyond it the decision holds
        self._left = STRETCH
        self._seconds = {False: 0.0, True: 0.0}
        self.decision = False

    @property
    def on(self) -> bool:
        """The way to go now."""
        trying = self._stretch < len(PATTERN)
        return PATTERN[self._stretch] if trying else self.decision

    def record(self, seconds: float) -> None:
        """A layer took this long."""
        if self._stretch < len(PATTERN):
            self._seconds[self.on] += seconds
        self._left -= 1
        if self._left > 0:
            return
        self._stretch, self._left = self._stretch + 1, STRETCH
        if self._stretch == len(PATTERN):
            self.decision = self._seconds[True] < WORTH * self._seconds[False]
            self._left = HOLD
        elif self._stretch > len(PATTERN):
            self._stretch, self._seconds = 0, {False: 0.0, True: 0.0}


class Lookahead:
    """Background reads of one stream.

    Args:
        most: experts that may be on their way at a time; 0 for no lookahead at all.
        bits_of: bits to read of experts of a layer; 0 for all that the reader reads.
    """

    def __init__(
        self,
        residency: Residency,
        reader: RecordReader,
        stats: StreamStats,
        most: int,
        bits_of: Callable[[int], int] = lambda layer: 0,
    ) -> None:
        self._residency, self._reader, self._stats = residency, reader, stats
        self._most, self._bits_of = most, bits_of
        # How much a layer has to do depends on the tokens: each number is tried by itself.
        self._trials = {tokens: Trial() for tokens in range(1, MOST_TOKENS + 1)}
        self._tokens = 1  # of the last request
        self._last = (-1, 0.0)  # layer and time of the last request
        self._under_way: dict[Key, Read] = {}
        self._unused: set[Key] = set()  # read ahead, not routed to yet

    @property
    def active(self) -> bool:
        """Whether suggestions are followed at present."""
        trial = self._trials.get(self._tokens)
        return self._most > 0 and trial is not None and trial.on

    def suggest(self, index: int, experts: Sequence[int]) -> None:
        """Read ahead for the layer with file ``index``, likeliest expert first."""
        reads: list[Read] = []
        for expert in experts:
            key = (index, int(expert))
            if len(self._under_way) + len(reads) >= self._most:
                break
            if key in self._residency:
                continue
            slot = self._residency.place(key, uses=0)
            if slot is None:
                break
            reads.append(Read(key, slot, self._bits_of(key[0])))
        if reads:
            self._under_way.update((read.key, read) for read in reads)
            self._stats.ahead_reads += len(reads)
            self._reader.submit(reads, BACKGROUND)

    def claim(self, index: int, experts: Sequence[int], tokens: int) -> dict[int, Read]:
        """Called when a layer's experts are known: those among ``experts`` whose reads
        have begun, by expert. Reads that have not begun are dropped. Only layers of
        few tokens are timed."""
        if not self._most:
            return {}
        self._time(index, tokens)
        if not self._under_way and not self._unused:
            return {}
        for read in self._reader.cancel_background():
            del self._under_way[read.key]
            self._residency.forget(read.key)
            self._stats.ahead_reads -= 1
        wanted = [(index, expert) for expert in experts]
        claimed = {key[1]: self._under_way.pop(key) for key in wanted if key in self._under_way}
        self._stats.ahead_used += len(claimed) + len(self._unused.intersection(wanted))
        self._unused = {key for key in self._unused if key[0] != index}
        return claimed

    def _time(self, index: int, tokens: int) -> None:
        # From layer to next layer; between two tokens the caller may have been idle.
        now, (before, then) = perf_counter(), self._last
        same, self._tokens = tokens == self._tokens, tokens
        self._last = (index, now)
        if index == before + 1 and same and tokens in self._trials:
            self._trials[tokens].record(now - then)

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
