"""Read sizes and depths from the cost model of the drive."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from headgate.stream.cost_model import CostModel
from headgate.stream.options import StreamOptions

PAGE = 4096
CHUNKS = tuple(1 << n for n in range(16, 23))  # 64 KiB .. 4 MiB
DEPTHS = (4, 8, 16, 32, 64)
#: A plan is better only if it saves more than this share; else the one with fewer, larger
#: reads and fewer of them in flight costs the processor less.
WORTH = 0.02
#: Reads are merged only if that saves more than this share, the error that a good fit has.
#: What was gained where it was measured is mostly processor time, 22 to 38 % of that of
#: records of 16 to 64 KiB that touch; see docs/performance.md.
WORTH_MERGING = 0.1
#: The read queue's limits of reads that are merged: gaps between them, and their number.
LARGEST_GAP = 1 << 18
MOST_IN_RUN = 256
#: What the read queue uses if nothing is asked for.
QUEUE_CHUNK, QUEUE_DEPTH = 1 << 20, 32
#: Records above this are not merged when nothing is known about the drive.
SMALL = 1 << 16


def read_plan(model: CostModel, record_bytes: int, reads: int) -> tuple[int, int]:
    """The chunk size and depth at which ``reads`` records of ``record_bytes`` bytes, a
    layer's misses, arrive soonest."""
    best = (max(CHUNKS), min(DEPTHS))
    least = float("inf")
    for chunk in sorted(CHUNKS, reverse=True):
        pieces = -(-record_bytes // chunk)
        piece = -(-record_bytes // pieces // PAGE) * PAGE
        for depth in DEPTHS:
            seconds = model.seconds(reads * pieces, piece, depth)
            if seconds < least * (1 - WORTH):
                least, best = seconds, (chunk, depth)
    return best


def tuned(
    options: StreamOptions, model: CostModel | None, record_bytes: int, reads: int
) -> StreamOptions:
    """``options`` with what they leave open filled in from the model, if there is one."""
    if model is None:
        return options
    chunk, depth = read_plan(model, record_bytes, reads)
    return dataclasses.replace(
        options,
        drive=model,
        chunk_bytes=options.chunk_bytes or chunk,
        depth=options.depth or depth,
    )


#: (file, first byte, bytes) of a read
Span = tuple[int, int, int]


class Merging:
    """Which of the reads that are submitted together are made one, with a destination
    for each record; what lies between them is read too and thrown away.

    By the cost model, as many are merged as make all that is queued arrive soonest.
    Without one, small records that touch are merged. A merged read is not cut, so it is
    at most one chunk long. Nothing is merged if the options say so.
    """

    def __init__(self, options: StreamOptions) -> None:
        self._model = options.drive
        self._longest = (options.chunk_bytes or QUEUE_CHUNK) if options.merge else 0
        self._depth = options.depth or QUEUE_DEPTH

    def runs(self, spans: Sequence[Span], queued: int = 0) -> list[int]:
        """Sizes of the groups of successive ``spans`` that are one read each; empty if
        no two are merged.

        Args:
            queued: other reads that are under way, of the same size on average.
        """
        gaps: dict[int, int] = {}  # before span i
        length = count = 0  # of the run that may be going on
        for i, (before, now) in enumerate(pairwise(spans), 1):
            gap = now[1] - before[1] - before[2]
            if not length:
                length, count = before[2], 1
            length, count = length + gap + now[2], count + 1
            near = now[0] == before[0] and 0 <= gap <= LARGEST_GAP
            if near and length <= self._longest and count <= MOST_IN_RUN:
                gaps[i] = gap
            else:
                length = 0
        chosen = self._worth(spans, gaps, queued) if gaps else set()
        if not chosen:
            return []
        starts = [i for i in range(len(spans)) if i not in chosen]
        return [end - start for start, end in zip(starts, [*starts[1:], len(spans)], strict=True)]

    def _worth(self, spans: Sequence[Span], gaps: dict[int, int], queued: int) -> set[int]:
        """Those of ``gaps`` that are to be closed."""
        if self._model is None:
            small = (i for i in gaps if max(spans[i - 1][2], spans[i][2]) <= SMALL)
            return {i for i in small if not gaps[i]}
        pieces = sum(-(-nbytes // self._longest) for _, _, nbytes in spans)
        nbytes = sum(nbytes for _, _, nbytes in spans)
        order = sorted(gaps, key=lambda i: gaps[i])
        sizes = tuple(gaps[i] for i in order)
        best = _merges(self._model, self._depth, pieces, nbytes, queued, sizes)
        return set(order[:best])


@lru_cache(4096)
def _merges(
    model: CostModel, depth: int, reads: int, nbytes: int, queued: int, gaps: tuple[int, ...]
) -> int:
    """How many of ``gaps`` to close, from the first on, so that ``reads`` reads of
    ``nbytes`` bytes in all, and as many others of that size as are queued, arrive soonest."""
    total = nbytes * (reads + queued) / reads
    seconds = []
    for merges in range(len(gaps) + 1):
        left = reads + queued - merges
        seconds.append(model.seconds(left, (total + sum(gaps[:merges])) / left, depth))
    best = seconds.index(min(seconds))
    return best if seconds[best] < seconds[0] * (1 - WORTH_MERGING) else 0
