"""Intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.evals.intervals import paired_bootstrap, ratio_bootstrap, wilson


def test_wilson_is_what_the_formula_gives() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_inside_0_and_1(counts: tuple[int, int]) -> None:
    right, n = counts
    low, high = wilson(right, n)
    assert 0 <= low <= (right / n if n else 0.5) <= high <= 1


def test_wilson_refuses_more_than_all() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_pairs_that_differ_alike_are_certain() -> None:
    assert paired_bootstrap([1, 1, 0], [0, 0, -1]) == (1.0, 1.0, 1.0)


def test_pairing_sees_what_two_shares_do_not() -> None:
    rng = np.random.default_rng(0)
    a = (rng.random(400) < 0.5).astype(float)
    b = a.copy()
    b[np.flatnonzero(a)[:20]] = 0  # loses 20 that the other has, gains none
    difference, low, high = paired_bootstrap(b.tolist(), a.tolist())
    assert difference == pytest.approx(-0.05)
    assert low < high < 0
    assert wilson(int(b.sum()), 400)[1] > wilson(int(a.sum()), 400)[0]


def test_bootstrap_is_repeatable_and_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 900).tolist()
    zeros = [0.0] * 900
    first, second = paired_bootstrap(values, zeros), paired_bootstrap(values, zeros)
    assert first == second
    difference, low, high = first
    error = 1.96 * np.std(values) / 30
    assert (difference - low, high - difference) == pytest.approx((error, error), rel=0.15)


def test_ratio_draws_whole_texts() -> None:
    # One text of ten differs: tokens drawn alone would be far more certain.
    low, high = ratio_bootstrap([100.0] + [0.0] * 9, [100.0] * 10)
    assert low == 0
    assert high > 0.25


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no pairs"):
        paired_bootstrap([1.0], [])
