"""Quantisation for known inputs: less error where it counts, in the same format."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headgate.quant import AffineMatrix, Moments, dequantize, quantize, quantize_calibrated
from headgate.quant.affine import served
from headgate.quant.calibrated import _Rows, precision_weights

Floats = npt.NDArray[np.float32]


def problem(rows: int, columns: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Weights, and moments of correlated inputs of unequal size."""
    r = np.random.default_rng(seed)
    w = r.standard_normal((rows, columns)).astype(np.float32)
    mix = r.standard_normal((columns // 2, columns)) * np.exp(r.standard_normal(columns))
    x = r.standard_normal((4 * columns, columns // 2)) @ mix
    x += 0.3 * r.standard_normal(x.shape)
    return w, (x.T @ x / len(x)).astype(np.float32)


def output_error(w: Floats, found: AffineMatrix, h: Floats, bits: int) -> float:
    off = w - dequantize(found, bits)
    return float(((off @ h) * off).sum() / ((w @ h) * w).sum())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("columns", "size"), [(128, 64), (96, 32), (200, 128)])
def test_outputs_have_less_error_at_every_precision(bits: int, columns: int, size: int) -> None:
    w, h = problem(24, columns)
    plain = quantize(w, bits, size)
    ours = quantize_calibrated(w, Moments.prepare(h, size), bits, size)
    for p in served(bits):
        share = output_error(w, ours, h, p) / output_error(w, plain, h, p)
        assert share < (0.4 if p == 2 else 0.9), (p, share)


def test_eight_bits_do_not_pay_for_the_others() -> None:
    w, h = problem(16, 128)
    plain, ours = quantize(w, 8, 64), quantize_calibrated(w, Moments.prepare(h, 64), 8, 64)
    for p in served(8):
        assert output_error(w, ours, h, p) < output_error(w, plain, h, p)


@pytest.mark.parametrize("bits", [2, 4])
def test_the_diagonal_alone_helps_where_inputs_differ_in_size(bits: int) -> None:
    w, h = problem(24, 128)
    h = np.diag(np.exp(3 * np.random.default_rng(1).standard_normal(128))).astype(np.float32)
    plain = quantize(w, bits, 64)
    ours = quantize_calibrated(w, Moments.prepare(np.diagonal(h), 64), bits, 64)
    assert output_error(w, ours, h, 2) < 0.5 * output_error(w, plain, h, 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_format_is_that_of_the_plain_search(bits: int) -> None:
    w, h = problem(5, 72)
    plain, ours = quantize(w, bits, 32), quantize_calibrated(w, Moments.prepare(h, 32), bits, 32)
    for name in ("codes", "scales", "biases"):
        a, b = getattr(plain, name), getattr(ours, name)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert ours.codes.max() < 2**bits and not ours.codes[:, 72:].any()
    assert (ours.columns, ours.bits, ours.group_size, ours.half) == (72, bits, 32, "bf16")
    assert np.isfinite(dequantize(ours)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_code_picked_is_the_best_of_all(bits: int) -> None:
    w, h = problem(4, 64)
    rows = _Rows(w, Moments.prepare(h, 64), bits, 64)
    weights = precision_weights(bits)
    at = np.random.default_rng(2).uniform(-2, 2**bits + 1, (len(weights), 300)).astype(np.float32)
    levels = rows._levels[:, :, None]  # [precisions, codes, 1]
    each = np.array(list(weights.values()))[:, None, None] * (levels - at[:, None]) ** 2
    error = each.sum(0)
    picked = rows._pick(at)
    assert np.allclose(error[picked, np.arange(300)], error.min(0), rtol=1e-5)


def test_every_refit_keeps_the_best_of_each_row() -> None:
    w, h = problem(16, 128)
    moments = Moments.prepare(h, 64)
    assert moments.matrix is not None
    before = np.full(16, np.inf)
    for refits in range(4):
        found = _Rows(w, moments, 2, 64).solve(refits)
        assert (found.error <= before).all()
        before = found.error
    off = w - dequantize(quantize_calibrated(w, moments, 2, 64, refits=3))
    assert np.allclose(((off @ moments.matrix) * off).sum(1), before, rtol=1e-3)


def test_threads_and_repetition_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headgate.quant.calibrated.MOST_ROWS", 16)
    w, h = problem(40, 64)
    found = [quantize_calibrated(w, Moments.prepare(h, 64), 3, 64, threads=n) for n in (1, 3, 3)]
    for other in found[1:]:
        for name in ("codes", "scales", "biases"):
            assert np.array_equal(getattr(found[0], name), getattr(other, name))


def test_feedback_factors_the_inverse() -> None:
    _, h = problem(1, 128)
    moments = Moments.prepare(h, 64)
    u, order = moments.feedback, moments.order
    assert u is not None and moments.matrix is not None
    assert np.array_equal(u, np.triu(u))
    product = u.astype(np.float64) @ moments.matrix[np.ix_(order, order)].astype(np.float64) @ u.T
    assert np.allclose(product, np.eye(128), atol=1e-3)
    assert (np.diff(moments.diagonal[order]) <= 0).all()


@pytest.mark.parametrize(
    "h",
    [
        np.zeros((64, 64), np.float32),
        np.zeros(64, np.float32),
        np.ones((64, 64), np.float32),
        -np.eye(64, dtype=np.float32),
        np.full((64, 64), 1e20, np.float32),
        1 - 2 * np.eye(64, dtype=np.float32),
    ],
    ids=["nothing", "no diagonal", "one direction", "negative", "huge", "indefinite"],
)
def test_any_moments_give_usable_weights(h: Floats) -> None:
    w = problem(8, 64)[0]
    for weights in (w, np.zeros_like(w), np.full_like(w, -3.5)):
        found = dequantize(quantize_calibrated(weights, Moments.prepare(h, 64), 4, 64))
        assert np.isfinite(found).all()
        assert np.abs(found - weights).max() <= max(2.0, 0.02 * float(np.abs(weights).max()))
