"""Where a prompt is cut into chunks, and where its state may be kept.

Both happen at *cuts*: at multiples of a grid, and behind tokens that end a turn of a
conversation. Cutting there changes no bit of what the model computes. So the answer depends
neither on the sizes of the chunks nor on a kept state that a prompt begins from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headgate.models import GRID


def grid_of(chunk: int) -> int:
    """The grid for chunks of up to ``chunk`` tokens: the model's, or if chunks are too
    small for it, every chunk of the full size."""
    return min(GRID, chunk)


def chunk_end(start: int, end: int, chunk: int) -> int:
    """Where the chunk that begins at ``start``, a cut of a prompt up to ``end``, ends.

    Args:
        chunk: most tokens of a chunk.
    """
    grid = grid_of(chunk)
    if grid < GRID:  # the model itself does not cut there
        return min(end, (start // grid + 1) * grid)
    if end - start <= chunk:
        return end
    return (start + chunk) // grid * grid


@dataclass(frozen=True)
class Cuts:
    """The cuts of prompts.

    Attributes:
        grid: cuts are at multiples of this,
        turn_ends: and behind these tokens.
    """

    grid: int
    turn_ends: frozenset[int]

    def has(self, tokens: Sequence[int], position: int) -> bool:
        """Whether there is a cut behind the first ``position`` of ``tokens``."""
        return position % self.grid == 0 or tokens[position - 1] in self.turn_ends

    def last(self, tokens: Sequence[int], position: int) -> int:
        """The last cut at ``position`` or before it."""
        while not self.has(tokens, position):
            position -= 1
        return position
