"""The benchmark's own arithmetic, against cases computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.measure.bench_worker import split
from headgate.measure.launch import others_share
from headgate.measure.percentiles import (
    Spread,
    histogram_percentiles,
    percentile,
    percentiles,
)
from headgate.measure.roofline import Bandwidth, TokenBytes, dense_bytes_per_token, roofline


def test_percentiles_are_nearest_ranks() -> None:
    ten = [7.0, 1, 10, 3, 5, 2, 9, 4, 8, 6]
    assert percentiles(ten) == {"p50": 5, "p90": 9, "p99": 10, "max": 10}
    hundred = [float(i) for i in range(100, 0, -1)]
    assert percentiles(hundred) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert percentiles([3.5]) == {"p50": 3.5, "p90": 3.5, "p99": 3.5, "max": 3.5}
    assert percentiles([]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    # 0.07 * 100 is 7.000000000000001 in floating point, and still the seventh.
    assert percentile(hundred, 0.07) == 7


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_there_is_no_percentile_of_nothing(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_percentiles_of_a_histogram_are_the_ends_of_buckets() -> None:
    # 5 values in [10, 20), 4 in [20, 40), 1 in [40, 80)
    found = histogram_percentiles([0, 10, 20, 40, 80], [0, 5, 4, 1, 0])
    assert found == {"p50": 20, "p90": 40, "p99": 80, "max": 80}
    assert histogram_percentiles([0, 10], [0, 0]) == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    # The last bucket has no end.
    assert histogram_percentiles([0, 10], [0, 2])["max"] == 10


@given(st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_a_histogram_never_flatters(values: list[int]) -> None:
    lower = list(range(0, 110, 10))
    counts = [sum(start <= value < start + 10 for value in values) for start in lower]
    found = histogram_percentiles(lower, counts)
    for name, exact in percentiles(values).items():
        assert exact < found[name] <= exact + 10


def test_spread_of_repeats() -> None:
    assert Spread.of([4.0, 1, 2]) == Spread(median=2, low=1, high=4)
    assert Spread.of([1.0, 2]) == Spread(median=1.5, low=1, high=2)
    with pytest.raises(ValueError, match="no values"):
        Spread.of([])


def test_roofline_adds_drive_and_memory() -> None:
    need = TokenBytes(drive=200e6, dense=600e6, experts=350e6, state=50e6)
    assert need.memory == 1e9
    # 0.1 s of the drive, then 0.05 s of memory, of 0.25 s
    found = roofline(need, Bandwidth(drive=2e9, memory=20e9), 0.25)
    assert (found.drive_s, found.memory_s) == (0.1, 0.05)
    assert found.ratio == pytest.approx(0.6)
    assert found.overlapped_ratio == pytest.approx(0.4)
    assert found.memory_ratio == pytest.approx(0.2)


def test_without_reads_memory_alone_is_the_roofline() -> None:
    need = TokenBytes(drive=0, dense=1e9, experts=0, state=0)
    found = roofline(need, Bandwidth(drive=0, memory=10e9), 0.125)
    assert found.ratio == found.overlapped_ratio == found.memory_ratio == pytest.approx(0.8)


def test_a_token_reads_one_row_of_the_embedding_table() -> None:
    sizes = {"embed_tokens.weight": 1000, "lm_head.weight": 900, "norm.weight": 50}
    assert dense_bytes_per_token(sizes, vocab=100, tied=False) == 10 + 900 + 50
    coded = {"embed_tokens.weight.q2": 800, "embed_tokens.weight.scales": 200, "norm.weight": 50}
    assert dense_bytes_per_token(coded, vocab=100, tied=True) == 1050


def test_what_others_took_is_neither_idle_nor_ours() -> None:
    # 20 s of two cores, of which 6 idle and 10 ours
    assert others_share((100, 50, 3), (120, 56, 13)) == pytest.approx(0.2)
    assert others_share((100, 50, 3), (120, 56, 18)) == 0  # clocks that tick differently
    assert others_share(None, (120, 56, 18)) is None


def test_time_split_adds_up() -> None:
    stream = {"wait_s": 3.0, "compute_s": 2.0, "keep_s": 1.5}
    parts = {"attention": 1.0, "router": 0.5, "experts": 0.5}
    found = split(stream, parts, 10.0)
    assert found == {
        "attention": 1.0,
        "router": 0.5,
        "experts": 2.5,  # products, and adding them up, which the stream counts as keeping
        "waiting for reads": 3.0,
        "bookkeeping": 1.0,
        "sampling, Python": 2.0,
    }
    assert sum(found.values()) == 10
