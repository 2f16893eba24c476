"""Where a prompt is cut into chunks.

Cuts are at multiples of a grid, on which cutting changes no bit of what the model
computes. So the answer depends neither on the sizes of the chunks nor on a kept state that
a prompt begins from.
"""

from __future__ import annotations

from headgate.models import GRID


def grid_of(chunk: int) -> int:
    """The grid for chunks of up to ``chunk`` tokens: the model's, or if chunks are too
    small for it, every chunk of the full size."""
    return min(GRID, chunk)


def chunk_end(start: int, end: int, chunk: int) -> int:
    """Where the chunk that begins at ``start`` of a prompt up to ``end`` ends.

    Args:
        chunk: most tokens of a chunk.
    """
    if end - start <= chunk:
        return end
    grid = grid_of(chunk)
    return (start + chunk) // grid * grid
