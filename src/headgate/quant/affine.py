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
searched from several shrunken ranges; from each, codes and least-squares (s, b)
are alternated. ``docs/format.md`` has the measured price of nesting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.quant.halves import Half, round_bf16, to_float
from headgate.quant.planes import CODE_BITS, Codes, padded_columns

Floats = npt.NDArray[np.float32]

#: Starting ranges, as shares of the group's full range.
SHRINKS = tuple(np.float32(x) for x in (0.5, 0.58, 0.66, 0.74, 0.82, 0.9, 0.98, 1.05))
ROUNDS = 3


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
    precisions = served(bits) if nested else (bits,)
    top = 2**bits - 1
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    best_error = np.full((len(groups), 1), np.inf, np.float32)
    best = (np.zeros_like(groups, np.uint8), np.zeros_like(low), np.zeros_like(low))
    for shrink in SHRINKS:
        s = np.maximum((high - low) * (shrink / np.float32(top)), np.float32(1e-12))
        b = (high + low) / 2 - s * (top / 2)
        for _ in range(ROUNDS):
            s, b = _fit(groups, _codes(groups, s, b, top), bits, precisions, s)
        s, b = round_bf16(s), round_bf16(b)
        codes = _codes(groups, s, b, top)
        error = _error(groups, codes, s, b, bits, precisions)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = (
            np.where(better, codes, best[0]),
            np.where(better, s, best[1]),
            np.where(better, b, best[2]),
        )
    halves = [np.ascontiguousarray(x).view(np.uint32) >> 16 for x in best[1:]]
    scales, biases = (x.astype(np.uint16).ravel() for x in halves)
    return assemble(best[0], scales, biases, len(weights), columns, bits, group_size)


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


def _codes(groups: Floats, s: Floats, b: Floats, top: int) -> Codes:
    return np.asarray(np.clip(np.rint((groups - b) / s), 0, top), np.uint8)


def _level(codes: Codes, stored: int, used: int) -> Floats:
    step = 2 ** (stored - used)
    cell = (codes >> (stored - used)).astype(np.float32)
    return np.asarray(cell * step + np.float32((step - 1) / 2), np.float32)


def _fit(
    groups: Floats, codes: Codes, bits: int, precisions: tuple[int, ...], fallback: Floats
) -> tuple[Floats, Floats]:
    """Least squares (s, b) for given codes, over all precisions at once."""
    total = sum(4.0**p for p in precisions)
    level_mean = square_mean = product_mean = np.zeros((len(groups), 1), np.float32)
    centred = groups - groups.mean(1, keepdims=True)
    for p in precisions:
        weight = np.float32(4.0**p / total)
        level = _level(codes, bits, p)
        level_mean = level_mean + weight * level.mean(1, keepdims=True)
        square_mean = square_mean + weight * (level * level).mean(1, keepdims=True)
        product_mean = product_mean + weight * (level * centred).mean(1, keepdims=True)
    variance = square_mean - level_mean * level_mean
    usable = (variance > 1e-4) & (product_mean > 0)
    s = np.where(usable, product_mean / np.where(usable, variance, 1), fallback)
    s = np.maximum(s, np.float32(1e-12)).astype(np.float32)
    return s, groups.mean(1, keepdims=True) - s * level_mean


def _error(
    groups: Floats, codes: Codes, s: Floats, b: Floats, bits: int, precisions: tuple[int, ...]
) -> Floats:
    error = np.zeros((len(groups), 1), np.float32)
    for p in precisions:
        off = groups - (s * _level(codes, bits, p) + b)
        error = error + np.float32(4.0**p) * (off * off).sum(1, keepdims=True)
    return error
