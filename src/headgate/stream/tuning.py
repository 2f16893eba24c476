"""Read sizes and depths from the cost model of the drive."""

from __future__ import annotations

import dataclasses

from headgate.stream.cost_model import CostModel
from headgate.stream.options import StreamOptions

PAGE = 4096
CHUNKS = tuple(1 << n for n in range(16, 23))  # 64 KiB .. 4 MiB
DEPTHS = (4, 8, 16, 32, 64)
#: A plan is better only if it saves more than this share; else the one with fewer, larger
#: reads and fewer of them in flight costs the processor less.
WORTH = 0.02


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
    if model is None or (options.chunk_bytes and options.depth):
        return options
    chunk, depth = read_plan(model, record_bytes, reads)
    return dataclasses.replace(
        options,
        chunk_bytes=options.chunk_bytes or chunk,
        depth=options.depth or depth,
    )
