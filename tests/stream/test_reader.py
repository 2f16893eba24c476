"""Reads of neighbouring records as one, and when that is done."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.errors import StoreError
from headgate.store import Store
from headgate.stream import CostModel, StreamOptions, tuned
from headgate.stream.reader import Read, RecordReader
from headgate.stream.tuning import LARGEST_GAP, SMALL, WORTH_MERGING, Merging
from tests.conftest import DemoStore

#: Every read costs as much as half a megabyte: whatever can be merged is.
DEAR = CostModel(latency=1e-5, stream=5e9, overhead=1e-4, bandwidth=5e9, sharpness=4)
#: A lone read is slow, many at once are not: parallel reads are worth more than few.
PARALLEL = CostModel(latency=1e-4, stream=2e8, overhead=1e-7, bandwidth=9e9, sharpness=4)


def merging(model: CostModel | None, **options: int | bool) -> Merging:
    return Merging(StreamOptions(drive=model, **options))  # type: ignore[arg-type]


def spans(
    record: int, stride: int, experts: list[int], file: int = 0
) -> list[tuple[int, int, int]]:
    return [(file, expert * stride, record) for expert in experts]


def read_all(reader: RecordReader, reads: list[Read]) -> dict[Read, int]:
    """The bytes of each read, checked."""
    reader.submit(reads)
    done: dict[Read, int] = {}
    while len(done) < len(reads):
        done.update(reader.wait())
    for read in done:
        reader.check(read)
    return done


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    bits=st.sampled_from([2, 4]),
    wanted=st.lists(
        st.tuples(st.integers(0, 7), st.integers(0, 63)), min_size=1, max_size=24, unique=True
    ),
    seed=st.integers(0, 99),
)
def test_merged_records_are_those_of_the_file(
    demo_store: DemoStore, bits: int, wanted: list[tuple[int, int]], seed: int
) -> None:
    store = Store.open(demo_store(4, 8))
    size, stride = store.layout.prefix_bytes(bits), store.layout.stride
    reader = RecordReader(store, len(wanted), bits, StreamOptions(drive=DEAR))
    slots = np.random.default_rng(seed).permutation(len(wanted)).tolist()
    reads = [Read(key, slot) for key, slot in zip(sorted(wanted), slots, strict=True)]
    done = read_all(reader, reads)
    for read in reads:
        record = np.fromfile(store.expert_path(read.key[0]), np.uint8)[read.key[1] * stride :]
        found = reader.memory[read.slot * size : (read.slot + 1) * size]
        assert np.array_equal(found, record[:size])
    stats = reader.queue.stats()
    assert stats["bytes"] == sum(done.values())
    joined = [a for a, b in pairwise(sorted(wanted)) if b == (a[0], a[1] + 1)]
    assert stats["count"] <= len(wanted) - len(joined) or len(joined) * stride > 1 << 19


def test_bytes_include_what_is_thrown_away(demo_store: DemoStore) -> None:
    store = Store.open(demo_store(4, 8))
    size, stride = store.layout.prefix_bytes(2), store.layout.stride
    assert size < stride
    reader = RecordReader(store, 3, 2, StreamOptions(drive=DEAR))
    done = read_all(reader, [Read((0, 4), 2), Read((0, 5), 0), Read((0, 6), 1)])
    assert reader.queue.stats()["count"] == 1
    assert sum(done.values()) == reader.queue.stats()["bytes"] == 2 * stride + size


def test_merging_can_be_turned_off(demo_store: DemoStore) -> None:
    store = Store.open(demo_store(4, 8))
    reader = RecordReader(store, 3, 4, StreamOptions(drive=DEAR, merge=False))
    read_all(reader, [Read((0, 4), 2), Read((0, 5), 0), Read((0, 6), 1)])
    assert reader.queue.stats()["count"] == 3


def test_an_end_of_file_within_a_merged_read_is_named(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    shutil.copytree(demo_store(4, 8), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    with store.expert_path(0).open("r+b") as file:
        file.truncate(6 * store.layout.stride - 4096)
    reader = RecordReader(store, 3, 4, StreamOptions(drive=DEAR))
    reader.submit([Read((0, 4), 0), Read((0, 5), 1), Read((0, 6), 2)])
    with pytest.raises(StoreError, match=r"expert [56],.*ends early"):
        while True:
            for read, _ in reader.wait():
                assert read.key == (0, 4)
    reader.drain()


def test_without_a_model_small_records_that_touch_are_merged() -> None:
    small = SMALL // 2
    assert merging(None).runs(spans(small, small, [1, 2, 3, 7, 8])) == [3, 2]
    assert merging(None).runs(spans(small, small, [1, 3, 5])) == []
    assert merging(None).runs(spans(small, small + 4096, [1, 2, 3])) == []
    large = SMALL + 4096
    assert merging(None).runs(spans(large, large, [1, 2, 3])) == []


def test_only_neighbours_of_one_file_in_order_are_merged() -> None:
    apart = [(0, 0, 8192), (1, 8192, 8192), (1, 16384, 8192)]
    assert merging(DEAR).runs(apart) == [1, 2]
    assert merging(DEAR).runs(spans(8192, 8192, [3, 2, 1])) == []
    assert merging(DEAR).runs(spans(8192, 8192 + LARGEST_GAP + 4096, [1, 2, 3])) == []


def test_a_merged_read_is_at_most_a_chunk() -> None:
    sizes = merging(DEAR, chunk_bytes=1 << 18).runs(spans(1 << 16, 1 << 16, list(range(11))))
    assert sizes == [4, 4, 3]
    assert merging(DEAR, chunk_bytes=1 << 18).runs(spans(3 << 16, 3 << 16, [0, 1, 2])) == []


def test_reads_that_are_better_off_in_parallel_stay_apart() -> None:
    assert merging(PARALLEL).runs(spans(1 << 18, 1 << 18, [1, 2, 3, 4])) == []


def test_reads_are_merged_as_far_as_the_model_gains() -> None:
    model = CostModel(latency=1e-4, stream=1e9, overhead=2e-5, bandwidth=2e9, sharpness=3)
    for record, gap, count in [(8192, 0, 6), (8192, 8192, 6), (65536, 0, 9), (65536, 65536, 5)]:
        sizes = merging(model).runs(spans(record, record + gap, list(range(count))))
        merges = count - len(sizes) if sizes else 0

        def seconds(merged: int) -> float:
            each = (count * record + merged * gap) / (count - merged)  # noqa: B023
            return model.seconds(count - merged, each, 32)  # noqa: B023

        times = [seconds(merged) for merged in range(count)]
        gains = min(times) < times[0] * (1 - WORTH_MERGING)
        assert merges == (times.index(min(times)) if gains else 0)


def test_a_gap_is_read_only_if_that_is_less_than_another_read() -> None:
    # A read costs a busy drive what 40 kB do.
    model = CostModel(latency=1e-7, stream=9e9, overhead=2e-5, bandwidth=2e9, sharpness=9)
    assert merging(model).runs(spans(16384, 16384 + 8192, [0, 1, 2])) == [3]
    assert merging(model).runs(spans(16384, 16384 + 65536, [0, 1, 2])) == []


def test_the_model_of_the_drive_comes_with_the_options() -> None:
    assert tuned(StreamOptions(), DEAR, 98304, 8).drive == DEAR
    assert tuned(StreamOptions(depth=4, chunk_bytes=65536), DEAR, 98304, 8).drive == DEAR
    assert tuned(StreamOptions(), None, 98304, 8).drive is None


def test_records_of_a_megabyte_are_not_worth_merging() -> None:
    # A common NVMe drive: a read costs it 10 us, a record of 1.7 MB 600.
    model = CostModel(latency=8e-5, stream=1.5e9, overhead=1e-5, bandwidth=3e9, sharpness=4)
    for count in (2, 8, 32):
        large = spans(1_769_472, 1_769_472, list(range(count)))
        assert merging(model, chunk_bytes=4 << 20).runs(large) == []
