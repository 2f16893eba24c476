"""Affine quantisation with nested codes that minimises the error of outputs.

:mod:`headgate.quant.affine` minimises the error of weights. Here the second moments of a
matrix's inputs are known (:class:`headgate.quant.moments.Moments`), and what is minimised
is the squared error of its outputs, summed over the precisions that the codes serve. The
format, its size and its decoding are the same.

1. Scales and biases of each group minimise the error weighted by the diagonal, from
   several ranges, codes and least squares in turn.
2. Codes are chosen column by column; the error that a column leaves is taken up by the
   columns after it (optimal brain surgeon, Hassibi and Stork 1993; GPTQ, Frantar et al.
   2022). Each precision has its own error and its own correction: the code chosen is the
   one whose prefixes together are closest to what each precision wants.
3. For these codes all scales and biases of a row are fitted together, by least squares
   under the moments, and step 2 is repeated. A row keeps the best it had.

float32 and BLAS: the same bytes on the same machine, perhaps not on another.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate.quant.affine import AffineMatrix, Floats, _level, assemble, grouped, served
from headgate.quant.halves import from_float, round_bf16
from headgate.quant.moments import Moments
from headgate.quant.planes import Codes

#: Starting ranges of the search, as shares of a group's full range, and its rounds.
SHRINKS, ROUNDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), 4
#: How often scales are fitted to the codes and codes chosen again.
REFITS = 2
#: Columns whose errors are handed on together.
BLOCK = 64
#: Rows that are in work at a time.
MOST_ROWS = 512
_ONE, _TINY = np.float32(1), np.float32(1e-12)


def precision_weights(bits: int) -> dict[int, np.float32]:
    """How much the squared error of each precision counts that codes of ``bits`` serve.

    Up to 4 bits all count the same: errors handed on make the finer precisions so much
    better that they can give some of it to the coarser ones. Codes of 8 bits are read as
    such for their accuracy, so 4^p makes relative errors count alike.
    """
    base = 4.0 if bits == 8 else 1.0
    return {p: np.float32(base ** (p - bits)) for p in reversed(served(bits))}


def quantize_calibrated(
    weights: Floats,
    moments: Moments,
    bits: int,
    group_size: int,
    refits: int = REFITS,
    threads: int = 1,
) -> AffineMatrix:
    """Quantise a matrix for the inputs that it gets.

    Args:
        weights: float32 [rows, columns], finite.
        moments: of the inputs, prepared for the same columns and group size.
        bits: 2, 3, 4 or 8.
        group_size: 32, 64 or 128.
        threads: that share the rows of a large matrix; they do not change the result.
    """
    groups, columns = grouped(weights, group_size)
    padded = groups.reshape(len(weights), -1)
    problems = [
        _Rows(padded[at : at + MOST_ROWS], moments, bits, group_size)
        for at in range(0, len(weights), MOST_ROWS)
    ]
    if threads > 1 and len(problems) > 1:
        with ThreadPoolExecutor(threads) as pool:
            parts = list(pool.map(lambda rows: rows.solve(refits), problems))
    else:
        parts = [rows.solve(refits) for rows in problems]
    codes, s, b = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("codes", "s", "b")
    )
    scales, biases = (from_float(x, "bf16").ravel() for x in (s, b))
    return assemble(codes, scales, biases, len(weights), columns, bits, group_size)


@dataclass
class _Found:
    """codes [rows, columns], s and b [rows, groups], and the error of each row."""

    codes: Codes
    s: Floats
    b: Floats
    error: npt.NDArray[np.float64]

    def or_better(self, other: _Found) -> _Found:
        better = other.error < self.error
        column = better[:, None]
        return _Found(
            np.where(column, other.codes, self.codes),
            np.where(column, other.s, self.s),
            np.where(column, other.b, self.b),
            np.where(better, other.error, self.error),
        )


class _Rows:
    """The problem of some rows, padded to whole groups."""

    def __init__(self, weights: Floats, moments: Moments, bits: int, size: int) -> None:
        self._w, self._moments, self._bits, self._size = weights, moments, bits, size
        self._weights = precision_weights(bits)
        self._top = np.float32(2**bits - 1)
        # Levels [precisions, codes]; first and last code of each cell [cells, 2]; and the
        # level of each cell [coarser precisions, cells, 1].
        codes = np.arange(2**bits, dtype=np.uint8)
        self._levels = np.stack([_level(codes, bits, p) for p in self._weights])
        finest, *coarser = self._weights
        width = 2 ** (finest - coarser[0] if coarser else finest)
        low = np.arange(0, 2**bits, width)
        self._cells = np.stack([low, low + width - 1], 1).astype(np.float32)
        self._middles = self._levels[1:, low, None]

    def solve(self, refits: int) -> _Found:
        best = self._choose(*self._start())
        for _ in range(refits if self._moments.matrix is not None else 0):
            best = best.or_better(self._choose(*self._refit(best)))
        return best

    # -- scales

    def _start(self) -> tuple[Floats, Floats]:
        """s and b [rows, groups] for columns that do not correct each other."""
        rows = len(self._w)
        w = self._w.reshape(rows, -1, self._size)
        d = self._moments.diagonal.reshape(1, -1, self._size)
        d = d / d.mean(-1, keepdims=True)
        low, high = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
        mean = (d * w).mean(-1, keepdims=True)
        centred = w - mean
        best_error = np.full_like(low, np.inf)
        best = np.zeros_like(low), np.zeros_like(low)
        for shrink in SHRINKS:
            s = np.maximum((high - low) * (np.float32(shrink) / self._top), _TINY)
            b = (high / 2 + low / 2) - mean - s * (self._top / 2)
            for _ in range(ROUNDS):
                s, b = self._fit(centred, d, s, b)
            s, b = round_bf16(s), round_bf16(b + mean)
            error = self._group_error(w, d, s, b)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best = np.where(better, s, best[0]), np.where(better, b, best[1])
        return best[0][..., 0], best[1][..., 0]

    def _nearest(self, w: Floats, s: Floats, b: Floats) -> Codes:
        codes: Codes = np.rint(np.clip((w - b) * _inverse(s), 0, self._top)).astype(np.uint8)
        return codes

    def _fit(self, w: Floats, d: Floats, s: Floats, b: Floats) -> tuple[Floats, Floats]:
        """Weighted least squares of s and b for the nearest codes."""
        codes = self._nearest(w, s, b)
        n = d.mean(-1, keepdims=True) * np.float32(sum(self._weights.values()))
        level, square, product = (np.zeros_like(s) for _ in range(3))
        for p, weight in self._weights.items():
            each = _level(codes, self._bits, p) - self._top / 2
            weighted = weight * d * each
            level += weighted.mean(-1, keepdims=True)
            square += (weighted * each).mean(-1, keepdims=True)
            product += (weighted * w).mean(-1, keepdims=True)
        # d * w has mean zero: w is centred.
        variance = square - level * level / n
        usable = (variance > np.float32(1e-4) * n) & (product > 0)
        s = np.where(usable, product / np.where(usable, variance, _ONE), s)
        s = np.maximum(s, _TINY)
        return s, -s * (level / n + self._top / 2)

    def _group_error(self, w: Floats, d: Floats, s: Floats, b: Floats) -> Floats:
        codes, error = self._nearest(w, s, b), np.zeros_like(s)
        for p, weight in self._weights.items():
            off = w - s * _level(codes, self._bits, p) - b
            error += weight * (d * off * off).mean(-1, keepdims=True)
        return error

    def _refit(self, found: _Found) -> tuple[Floats, Floats]:
        """s and b of all groups of a row together, for its codes: the least squares of
        ``w - A (s, b)`` under the moments, where A has levels and ones."""
        h = self._moments.matrix
        assert h is not None
        rows, size = len(self._w), self._size
        count = self._w.shape[1] // size
        normal = np.zeros((rows, 2 * count, 2 * count))
        right = np.zeros((rows, 2 * count))
        by_group = (rows, count, size)
        wh = (self._w @ h).reshape(by_group)
        sums = h.reshape(-1, count, size).sum(-1)  # [columns, groups]
        ones = sums.reshape(count, size, count).sum(1)
        for p, weight in self._weights.items():
            level = _level(found.codes, self._bits, p)
            for g in range(count):
                part = level[:, g * size : (g + 1) * size]
                row = part @ h[g * size : (g + 1) * size]
                normal[:, g, :count] += weight * (row * level).reshape(by_group).sum(-1)
                cross = weight * (part @ sums[g * size : (g + 1) * size])
                normal[:, g, count:] += cross
                normal[:, count:, g] += cross
            normal[:, count:, count:] += weight * ones
            right[:, :count] += weight * (wh * level.reshape(by_group)).sum(-1)
            right[:, count:] += weight * wh.sum(-1)
        # A tie to what is there: codes of one level alone determine no scale.
        here = np.concatenate([found.s, found.b], 1).astype(np.float64)
        diagonal = np.einsum("rii->ri", normal)
        tie = 1e-6 * diagonal + 1e-30
        right += tie * here
        diagonal += tie
        fitted = np.linalg.solve(normal, right[..., None])[..., 0].astype(np.float32)
        s, b = fitted[:, :count], fitted[:, count:]
        usable = np.isfinite(fitted).all(1, keepdims=True) & (s > 0).all(1, keepdims=True)
        return (
            round_bf16(np.where(usable, s, found.s)),
            round_bf16(np.where(usable, b, found.b)),
        )

    # -- codes

    def _choose(self, s: Floats, b: Floats) -> _Found:
        """Codes for given scales, each error handed on to the columns that follow."""
        moments = self._moments
        if moments.feedback is None:
            codes = self._choose_alone(s, b)
            return _Found(codes, s, b, self._error(codes, s, b))
        # Columns are contiguous here, in their order, and each precision wants its own.
        start = np.ascontiguousarray(self._w.T[moments.order])
        wanted = np.repeat(start[None], len(self._weights), 0)
        codes = np.empty(start.shape, np.uint8)
        for first in range(0, len(start), BLOCK):
            last = min(first + BLOCK, len(start))
            off = self._choose_block(wanted, codes, first, last, (s.T, b.T))
            later = moments.feedback[first:last, last:]
            for precision, errors in zip(wanted, off, strict=True):
                precision[last:] -= later.T @ errors
        found = np.empty((len(s), len(start)), np.uint8)
        found[:, moments.order] = codes.T
        return _Found(found, s, b, self._error(found, s, b))

    def _choose_block(
        self, wanted: Floats, codes: Codes, first: int, last: int, scales: tuple[Floats, Floats]
    ) -> Floats:
        """Columns [first, last) of ``codes``; their errors [precisions, columns, rows]."""
        u, groups = self._moments.feedback, self._moments.order // self._size
        assert u is not None
        off = np.empty((len(wanted), last - first, wanted.shape[2]), np.float32)
        for j in range(first, last):
            s, b = scales[0][groups[j]], scales[1][groups[j]]
            inverse = _inverse(s)
            code = codes[j] = self._pick((wanted[:, j] - b) * inverse)
            left = (wanted[:, j] - (self._levels[:, code] * s + b)) / u[j, j]
            off[:, j - first] = left
            wanted[:, j + 1 : last] -= u[j, j + 1 : last, None] * left[:, None]
        return off

    def _choose_alone(self, s: Floats, b: Floats) -> Codes:
        scale, bias = (np.repeat(x, self._size, 1) for x in (s, b))
        at = ((self._w - bias) * _inverse(scale)).reshape(1, -1)
        flat = np.repeat(at, len(self._weights), 0)
        # In pieces: every cell is tried for every weight.
        pieces = [self._pick(flat[:, i : i + 65536]) for i in range(0, flat.shape[1], 65536)]
        return np.concatenate(pieces).reshape(self._w.shape)

    def _pick(self, at: Floats) -> Codes:
        """The codes [n] whose prefixes are closest to the levels ``at`` [precisions, n].

        Within a cell of the last precision but one the finest alone decides, by
        rounding; what is left to try is those cells.
        """
        level = np.clip(np.rint(at[0]), self._cells[:, :1], self._cells[:, 1:])  # [cells, n]
        if len(level) == 1:
            only: Codes = level[0].astype(np.uint8)
            return only
        error = np.square(at[0] - level)
        for each, middles, weight in zip(
            at[1:], self._middles, list(self._weights.values())[1:], strict=True
        ):
            error += weight * np.square(each - middles)
        best = error.argmin(0)
        codes: Codes = np.take_along_axis(level, best[None], 0)[0].astype(np.uint8)
        return codes

    def _error(self, codes: Codes, s: Floats, b: Floats) -> npt.NDArray[np.float64]:
        """Each row's error of outputs, over all precisions."""
        scale, bias = (np.repeat(x, self._size, 1) for x in (s, b))
        total = np.zeros(len(self._w))
        for p, weight in self._weights.items():
            off = self._w - (scale * _level(codes, self._bits, p) + bias)
            h = self._moments.matrix
            through = off * self._moments.diagonal if h is None else off @ h
            total += weight * (off * through).sum(1, dtype=np.float64)
        return total


def _inverse(s: Floats) -> Floats:
    return np.where(s > 0, _ONE / np.where(s > 0, s, _ONE), np.float32(0))
