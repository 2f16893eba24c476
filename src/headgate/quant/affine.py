"""Affine quantisation with nested codes.

A group of weights along the input dimension shares a scale s and a bias b:
``w ~ s * c + b`` with an unsigned code c of B bits. The first p bits of a code
are a code of precision p whose value is the middle of its cell::

    c' = c >> (B - p)
    w' = s * (c' * 2**(B-p) + (2**(B-p) - 1) / 2) + b

so every prefix of the planes of :mod:`headgate.quant.planes` is usable.

s and b minimise the squared error summed over all precisions that the codes
serve, each weighted by 4**p (the error of a uniform quantiser falls fourfold
with a bit, so each precision counts for its relative error). The minimum is
searched from several ranges; from each, codes and least-squares (s, b) are
alternated. ``docs/format.md`` has the measured price of nesting.

The search is defined to the last bit, and the native one gives the same bits on
every machine: float32 throughout, sums over a group in its order, one rounding
per operation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.quant.halves import Half, round_bf16, to_float
from headgate.quant.planes import CODE_BITS, Codes, padded_columns

Floats = npt.NDArray[np.float32]

#: Bits of the codes -> starting ranges, as shares of the group's full range, and
#: how often codes and (s, b) are alternated from each.
STARTS = {
    2: ((0.6, 0.75, 0.9), 4),
    3: ((0.7, 0.85, 1.0), 4),
    4: ((0.8, 0.9, 1.0), 4),
    8: ((1.0, 1.025, 1.05), 2),
}
_ONE = np.float32(1)
_TINY = np.float32(1e-12)


@dataclass(frozen=True)
class AffineMatrix:
    """A quantised matrix [rows, columns].

    Attributes:
        codes: uint8 [rows, padded columns]; codes of padding are 0.
        scales, biases: uint16 [rows, padded / group_size], bit patterns of ``half``.
        columns: number of columns before padding.
    """

    codes: Codes
    scales: npt.NDArray[np.uint16]
    biases: npt.NDArray[np.uint16]
    columns: int
    bits: int
    group_size: int
    half: Half = "bf16"

    def split(self, row: int) -> tuple[AffineMatrix, AffineMatrix]:
        """The rows before ``row``, and the others."""
        first, second = (
            AffineMatrix(
                self.codes[part],
                self.scales[part],
                self.biases[part],
                self.columns,
                self.bits,
                self.group_size,
                self.half,
            )
            for part in (slice(row), slice(row, None))
        )
        return first, second


def served(bits: int) -> tuple[int, ...]:
    """The precisions at which codes of ``bits`` bits can be read."""
    return tuple(p for p in CODE_BITS if p <= bits)


def quantize(weights: Floats, bits: int, group_size: int, nested: bool = True) -> AffineMatrix:
    """The search in NumPy; :class:`headgate.quant.native.Quantizer` is the fast one.

    Args:
        weights: float32 [rows, columns], finite.
        bits: 2, 3, 4 or 8.
        group_size: 32, 64 or 128.
        nested: choose scales for all precisions that the codes serve; otherwise
            for ``bits`` alone.
    """
    groups, columns = grouped(weights, group_size)
    search = _Search(groups, bits, served(bits) if nested else (bits,))
    best_error = np.full((len(groups), 1), np.inf, np.float32)
    best = (np.zeros_like(best_error), np.zeros_like(best_error))
    shrinks, rounds = STARTS[bits]
    for shrink in shrinks:
        s, b = search.run(np.float32(shrink), rounds)
        error = search.error(s, b)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, s, best[0]), np.where(better, b, best[1])
    codes = _codes(groups, *best, search.top)
    halves = [np.ascontiguousarray(x).view(np.uint32) >> 16 for x in best]
    scales, biases = (x.astype(np.uint16).ravel() for x in halves)
    return assemble(codes, scales, biases, len(weights), columns, bits, group_size)


def dequantize(matrix: AffineMatrix, bits: int | None = None) -> Floats:
    """float32 [rows, columns] at ``bits`` bits (default: as stored)."""
    bits = matrix.bits if bits is None else bits
    rows = matrix.codes.shape[0]
    level = _level(matrix.codes, matrix.bits, bits).reshape(rows, -1, matrix.group_size)
    s, b = to_float(matrix.scales, matrix.half), to_float(matrix.biases, matrix.half)
    full = (level * s[:, :, None] + b[:, :, None]).reshape(rows, -1)
    return np.ascontiguousarray(full[:, : matrix.columns])


def grouped(weights: Floats, group_size: int) -> tuple[Floats, int]:
    """[rows, columns] to padded groups [rows * groups, group_size], and columns."""
    columns = weights.shape[1]
    padded = padded_columns(columns, group_size)
    if padded != columns:
        # The last weight repeated, so that padding does not stretch a group's range.
        weights = np.pad(weights, ((0, 0), (0, padded - columns)), mode="edge")
    return np.ascontiguousarray(weights, np.float32).reshape(-1, group_size), columns


def assemble(
    codes: Codes,
    scales: npt.NDArray[np.uint16],
    biases: npt.NDArray[np.uint16],
    rows: int,
    columns: int,
    bits: int,
    group_size: int,
) -> AffineMatrix:
    """The results of a search over groups as one matrix."""
    codes = codes.reshape(rows, -1)
    codes[:, columns:] = 0
    return AffineMatrix(
        codes, scales.reshape(rows, -1), biases.reshape(rows, -1), columns, bits, group_size
    )


class _Search:
    """The search of (s, b) for groups [groups, size]."""

    def __init__(self, groups: Floats, bits: int, precisions: tuple[int, ...]) -> None:
        self._groups = groups
        self._bits = bits
        # Finest first, with weights relative to the finest.
        self._weights = {p: np.float32(4.0 ** (p - bits)) for p in reversed(precisions)}
        self._share = _ONE / np.float32(groups.shape[1] * float(sum(self._weights.values())))
        self.top = np.float32(2**bits - 1)
        self._middle = self.top / 2
        self._mean = _sum(groups) / np.float32(groups.shape[1])
        self._centred = groups - self._mean

    def run(self, shrink: np.float32, rounds: int) -> tuple[Floats, Floats]:
        """bfloat16 (s, b) from one starting range."""
        low, high = self._groups.min(1, keepdims=True), self._groups.max(1, keepdims=True)
        s = np.maximum((high - low) * (shrink / self.top), _TINY)
        b = (high / 2 + low / 2) - self._mean - s * self._middle  # relative to the mean
        for _ in range(rounds):
            s, level_mean = self._fit(_codes(self._centred, s, b, self.top), s)
            b = -(s * level_mean)
        s = round_bf16(s)
        return s, round_bf16(self._mean - s * level_mean)

    def error(self, s: Floats, b: Floats) -> Floats:
        """The weighted squared error that (s, b) and the codes for it leave."""
        terms = []
        codes = _codes(self._groups, s, b, self.top)
        for p, weight in self._weights.items():
            off = self._groups - b - s * self._middle - s * self._level(codes, p)
            terms.append(off * off * weight)
        # In the order of the weights, and for each from fine to coarse.
        return _sum(np.stack(terms, 2).reshape(len(codes), -1))

    def _fit(self, codes: Codes, s: Floats) -> tuple[Floats, Floats]:
        """Least squares for given codes, over all precisions at once: a new s and the
        mean level, which determines b."""
        level, square = np.zeros_like(self._centred), np.zeros_like(self._centred)
        for p, weight in self._weights.items():
            weighted = self._level(codes, p) * weight
            level = level + weighted
            square = square + weighted * self._level(codes, p)
        mean, product = _sum(level) * self._share, _sum(level * self._centred)
        variance = _sum(square) * self._share - mean * mean
        usable = (variance > np.float32(1e-4)) & (product > 0)
        s = np.where(usable, product * self._share / np.where(usable, variance, _ONE), s)
        return np.maximum(s, _TINY), mean + self._middle

    def _level(self, codes: Codes, used: int) -> Floats:
        """Levels of the first ``used`` bits, from the middle of the range."""
        return _level(codes, self._bits, used) - self._middle


def _sum(x: Floats) -> Floats:
    """Sums of rows, added from left to right."""
    return np.add.accumulate(x, axis=1)[:, -1:]


def _codes(groups: Floats, s: Floats, b: Floats, top: np.float32) -> Codes:
    inverse = np.where(s > 0, _ONE / np.where(s > 0, s, _ONE), np.float32(0))
    codes: Codes = np.rint(np.clip((groups - b) * inverse, 0, top)).astype(np.uint8)
    return codes


def _level(codes: Codes, stored: int, used: int) -> Floats:
    step = 1 << (stored - used)
    return (codes >> (stored - used)).astype(np.float32) * step + np.float32((step - 1) / 2)
