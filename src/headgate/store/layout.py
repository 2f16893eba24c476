"""The record of one expert: which bytes lie where.

A record holds the three matrices of an expert, gate and up [intermediate, hidden]
and down [hidden, intermediate], in segments of rising precision. Every segment
starts and ends on a multiple of 4096 so that a prefix is one direct read; inside
a segment every piece starts on a multiple of 64, a cache line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from headgate.errors import StoreError
from headgate.quant import PLANES, Half, padded_columns, planes_of
from headgate.quant.planes import CODE_BITS, GROUP_SIZES

Matrix = Literal["gate", "up", "down"]
MATRICES: tuple[Matrix, ...] = ("gate", "up", "down")

ALIGNMENT = 4096
PIECE_ALIGNMENT = 64
MAX_DIMENSION = 1 << 20
STORED_BITS = (*CODE_BITS, 16)


def align(value: int, to: int) -> int:
    """``value`` rounded up to a multiple of ``to``."""
    return -(-value // to) * to


@dataclass(frozen=True)
class Segment:
    """A part of a record: with it and those before it the expert has ``bits`` bits."""

    bits: int
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True)
class ExpertFormat:
    """Shape and precision of every expert of a store.

    Attributes:
        bits: 2, 3, 4 or 8 for affine codes; 16 for plain 16-bit weights.
        group_size: weights that share a scale; 0 at 16 bits.
        half: type of scales and biases, or of the weights themselves at 16 bits.
    """

    hidden_size: int
    intermediate_size: int
    bits: int
    group_size: int
    half: Half = "bf16"

    def __post_init__(self) -> None:
        for name, value in (("hidden", self.hidden_size), ("intermediate", self.intermediate_size)):
            if not 1 <= value <= MAX_DIMENSION:
                raise StoreError(f"{name} size {value} is outside 1..{MAX_DIMENSION}")
        if self.bits not in STORED_BITS:
            raise StoreError(f"expert bits {self.bits} are none of {list(STORED_BITS)}")
        sizes = (0,) if self.bits == 16 else GROUP_SIZES
        if self.group_size not in sizes:
            raise StoreError(f"group size {self.group_size} is none of {list(sizes)}")
        if self.half not in ("bf16", "f16"):
            raise StoreError(f"16-bit type {self.half!r} is neither 'bf16' nor 'f16'")

    def shape(self, matrix: Matrix) -> tuple[int, int]:
        """(rows, columns) of one of the expert's matrices."""
        if matrix == "down":
            return self.hidden_size, self.intermediate_size
        return self.intermediate_size, self.hidden_size

    @property
    def readable_bits(self) -> tuple[int, ...]:
        """The precisions at which a record can be read."""
        if self.bits == 16:
            return (16,)
        return tuple(bits for bits in CODE_BITS if bits <= self.bits)

    @property
    def parameters(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden_size * self.intermediate_size


@dataclass(frozen=True)
class RecordLayout:
    """Byte offsets inside a record, derived from the format alone."""

    format: ExpertFormat

    @cached_property
    def _plan(self) -> tuple[tuple[Segment, ...], dict[tuple[Matrix, str], tuple[int, int]]]:
        pieces: dict[tuple[Matrix, str], tuple[int, int]] = {}
        segments: list[Segment] = []
        at = 0
        for bits in self.format.readable_bits:
            start = at
            for matrix, piece, nbytes in self._pieces_of_segment(bits):
                pieces[matrix, piece] = (at, nbytes)
                at = align(at + nbytes, PIECE_ALIGNMENT)
            at = align(at, ALIGNMENT)
            segments.append(Segment(bits, start, at - start))
        return tuple(segments), pieces

    def _pieces_of_segment(self, bits: int) -> list[tuple[Matrix, str, int]]:
        f = self.format
        if bits == 16:
            return [(m, "weights", 2 * f.shape(m)[0] * f.shape(m)[1]) for m in MATRICES]
        padded = {m: f.shape(m)[0] * padded_columns(f.shape(m)[1], f.group_size) for m in MATRICES}
        pieces: list[tuple[Matrix, str, int]] = []
        if bits == 2:
            for m in MATRICES:
                groups = padded[m] // f.group_size
                pieces += [(m, "scales", 2 * groups), (m, "biases", 2 * groups)]
        plane = next(p for p in planes_of(f.bits) if PLANES[p][0] == bits)
        return pieces + [(m, plane, padded[m] // 64 * PLANES[plane][1]) for m in MATRICES]

    @property
    def segments(self) -> tuple[Segment, ...]:
        return self._plan[0]

    @property
    def pieces(self) -> dict[tuple[Matrix, str], tuple[int, int]]:
        """(matrix, piece) -> (offset in the record, bytes)."""
        return self._plan[1]

    @property
    def stride(self) -> int:
        """Bytes of a whole record."""
        return self.segments[-1].end

    def prefix(self, bits: int) -> tuple[Segment, ...]:
        """The segments to read for ``bits`` bits."""
        if bits not in self.format.readable_bits:
            raise StoreError(
                f"the store has no {bits}-bit experts; it can be read at "
                f"{', '.join(map(str, self.format.readable_bits))} bits"
            )
        return tuple(s for s in self.segments if s.bits <= bits)

    def prefix_bytes(self, bits: int) -> int:
        """Bytes to read for an expert at ``bits`` bits."""
        return self.prefix(bits)[-1].end
