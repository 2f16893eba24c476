"""Experts at two precisions from one store, against experts computed from the file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.errors import DamagedStore, UsageError
from headgate.ops import ExpertBatch, Ops, load_ops
from headgate.store import Store
from headgate.stream import ExpertStream, Precision, StreamOptions
from headgate.stream.reader import BACKGROUND, DEMAND, Read, RecordReader
from tests.conftest import DemoStore
from tests.stream.test_experts import flip

Floats = npt.NDArray[np.float32]
QUIET = StreamOptions(lookahead=0)
EXPERTS, HIDDEN = 64, 256


def outputs(store: Store, ops: Ops, layer: int, ids: Any, x: Floats, bits: int) -> Floats:
    """[T * K, hidden], every pair at ``bits`` from the whole file; zeros for -1."""
    arena = np.fromfile(store.expert_path(layer), np.uint8)
    kernel, k = ops.expert_kernel(store.layout, bits), ids.shape[1]
    y = np.zeros((ids.size, x.shape[1]), np.float32)
    pairs = np.flatnonzero(ids.ravel() >= 0).astype(np.int32)
    offsets = [int(e) * store.layout.stride for e in ids.ravel()[pairs]]
    splits = np.arange(len(pairs) + 1, dtype=np.int32)
    kernel(arena, ExpertBatch(offsets, splits, pairs // k, pairs), x, y)
    return y


def inputs(tokens: int, k: int, seed: int) -> tuple[Any, Floats, Floats]:
    """ids [T, K], x [T, hidden], weights [T, K]."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(EXPERTS)[:k] for _ in range(tokens)]).astype(np.int32)
    x = rng.standard_normal((tokens, HIDDEN), dtype=np.float32)
    return ids, x, rng.random((tokens, k), dtype=np.float32)


def mixed(store: Store, ops: Ops, slots: int, *, refine: bool = False) -> ExpertStream:
    return ExpertStream(store, ops, slots, Precision(2, 4, refine), QUIET)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    slots=st.integers(1, 60),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=5),
    k=st.integers(1, 8),
    low=st.sampled_from([2, 3]),
    seed=st.integers(0, 1000),
)
def test_every_pair_gets_the_bits_it_wants_whatever_the_cache(
    demo_store: DemoStore, slots: int, steps: list[tuple[int, int]], k: int, low: int, seed: int
) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops(threads=2)
    stream = ExpertStream(store, ops, slots, Precision(low, 4), QUIET)
    rng = np.random.default_rng(seed)
    for number, (layer, tokens) in enumerate(steps):
        ids, x, weights = inputs(tokens, k, seed + number)
        fine = rng.random(ids.shape) < 0.4
        gone = rng.random(ids.shape) < 0.2
        gone[:, 0] = False
        ids[gone], weights[gone] = -1, 0
        found = stream.compute(stream.request(layer, ids, fine), x, weights, x)
        coarse, exact = (outputs(store, ops, layer, ids, x, bits) for bits in (low, 4))
        y = np.where(fine.reshape(-1, 1), exact, coarse)
        assert np.array_equal(found, ops.combine(y, weights, x))


def test_only_what_is_missing_is_read(demo_store: DemoStore) -> None:
    """An expert is read at the most that any token wants, and later completed, not read again."""
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream, layout = mixed(store, ops, 32), store.layout
    low, high = layout.prefix_bytes(2), layout.prefix_bytes(4)
    x, weights = np.ones((2, HIDDEN), np.float32), np.ones((2, 2), np.float32)

    def ask(ids: list[list[int]], fine: list[list[int]]) -> int:
        before = stream.stats.bytes_read
        request = stream.request(0, np.array(ids, np.int32), np.array(fine, np.bool_))
        stream.compute(request, x, weights, x)
        return stream.stats.bytes_read - before

    assert ask([[1, 2], [2, 3]], [[0, 0], [1, 0]]) == 2 * low + high
    assert (stream.stats.hits, stream.stats.misses) == (0, 3)
    assert stream.stats.wanted_bytes == 3 * low + high and stream.stats.tokens == 2
    assert ask([[1, 2], [2, 3]], [[0, 0], [0, 0]]) == 0
    assert ask([[1, 2], [3, 2]], [[1, 1], [0, 0]]) == high - low
    assert (stream.stats.hits, stream.stats.misses, stream.stats.upgrades) == (5, 4, 1)
    assert ask([[1, 4], [3, 2]], [[0, 1], [0, 0]]) == high


@pytest.mark.parametrize("mode", ["direct", "mmap"])
def test_experts_that_stay_become_exact(demo_store: DemoStore, mode: Any) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    options = StreamOptions(lookahead=0, read_mode=mode)
    stream = ExpertStream(store, ops, 64, Precision(2, 4, refine=True), options)
    ids, x, weights = inputs(3, 6, 1)
    exact = ops.combine(outputs(store, ops, 1, ids, x, 4), weights, x)
    coarse = ops.combine(outputs(store, ops, 1, ids, x, 2), weights, x)
    answers = []
    for _ in range(5):
        answers.append(stream.compute(stream.request(1, ids), x, weights, x))
        stream.reader.queue.drain()
    distinct = len(np.unique(ids))
    assert np.array_equal(answers[0], coarse) and np.array_equal(answers[-1], exact)
    assert stream.stats.refined == distinct
    # Nothing has been read twice, and everything is counted.
    assert stream.stats.bytes_read == distinct * store.layout.stride
    assert stream.stats.hits == 4 * distinct and stream.stats.misses == distinct


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(slots=st.integers(1, 24), ahead=st.booleans(), seed=st.integers(0, 1000))
def test_refining_never_gives_anything_but_one_of_two_precisions(
    demo_store: DemoStore, slots: int, ahead: bool, seed: int
) -> None:
    """In caches of any size, beside reads ahead, and after an interrupt."""
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream = ExpertStream(store, ops, slots, Precision(2, 4, refine=True))
    rng = np.random.default_rng(seed)
    for number in range(8):
        layer, k = int(rng.integers(2)), int(rng.integers(1, 6))
        ids, x, _ = inputs(2, k, number % 3)
        fine = rng.random(ids.shape) < 0.3
        if ahead:
            stream.suggest(layer, rng.permutation(EXPERTS)[:4].astype(np.int32))
        request = stream.request(layer, ids, fine)
        if rng.random() < 0.2:
            continue  # its caller has been interrupted
        one_of = np.zeros((2, k), np.float32)
        found = []
        for rank in range(k):  # one rank at a time, to see each expert's output
            one_of[:] = 0
            one_of[:, rank] = 1
            zero = np.zeros_like(x)
            found.append(stream.compute(request, x, one_of, zero))
            request = stream.request(layer, ids, fine)
        stream.compute(request, x, one_of, x)
        coarse, exact = (
            outputs(store, ops, layer, ids, x, bits).reshape(2, k, -1) for bits in (2, 4)
        )
        for rank, rows in enumerate(found):
            for token in range(2):
                is_exact = np.array_equal(rows[token], exact[token, rank])
                assert is_exact or np.array_equal(rows[token], coarse[token, rank])
                assert is_exact or not fine[token, rank]


def test_damage_is_found_in_the_segment_that_is_read(
    demo_store: DemoStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_store(4, 8), tmp_path / "store")
    store, ops = Store.open(tmp_path / "store"), load_ops()
    flip(store.expert_path(5), 7 * store.layout.stride + store.layout.segments[2].offset + 99)
    x, weights = np.ones((1, HIDDEN), np.float32), np.ones((1, 2), np.float32)
    ids = np.array([[6, 7]], np.int32)
    stream = mixed(store, ops, 16)
    for _ in range(2):
        coarse = stream.compute(stream.request(5, ids), x, weights, x)  # not even read
        request = stream.request(5, ids, np.array([[False, True]]))
        with pytest.raises(DamagedStore, match="layer 5, expert 7, segment 2"):
            stream.compute(request, x, weights, x)
    # Nobody has asked for the bits that refining finds damaged: a note, and it goes on.
    stream = mixed(store, ops, 16, refine=True)
    for _ in range(4):
        found = stream.compute(stream.request(5, ids), x, weights, x)
        stream.reader.queue.drain()
    assert stream.stats.refined == 1
    assert capsys.readouterr().err.count("not refined: layer 5, expert 7, segment 2") == 1
    y = np.stack([outputs(store, ops, 5, ids[:, i : i + 1], x, 4 - 2 * i)[0] for i in (0, 1)])
    assert np.array_equal(found, ops.combine(y, weights, x)) and not np.array_equal(found, coarse)


def test_reads_ahead_are_coarse_and_completed_on_demand(demo_store: DemoStore) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream = ExpertStream(store, ops, 64, Precision(2, 4))
    ids, x, weights = inputs(1, 4, 5)
    fine = np.array([[True, False, True, False]])
    coarse, exact = (outputs(store, ops, 3, ids, x, bits) for bits in (2, 4))
    expected = ops.combine(np.where(fine.reshape(-1, 1), exact, coarse), weights, x)
    stream.suggest(3, ids[0])
    stream.reader.queue.drain()
    assert np.array_equal(stream.compute(stream.request(3, ids, fine), x, weights, x), expected)
    low, high = store.layout.prefix_bytes(2), store.layout.prefix_bytes(4)
    assert stream.stats.bytes_read == 2 * low + 2 * high
    assert stream.stats.ahead_used == 4


def test_without_a_cache_nothing_is_refined(demo_store: DemoStore) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    options = StreamOptions(cache=False, lookahead=0)
    stream = ExpertStream(store, ops, 64, Precision(2, 4, refine=True), options)
    ids, x, weights = inputs(2, 4, 2)
    for _ in range(3):
        stream.compute(stream.request(0, ids), x, weights, x)
    assert len(stream.residency) == 0 and stream.stats.refined == 0
    assert stream.stats.bytes_read == 3 * len(np.unique(ids)) * store.layout.prefix_bytes(2)


def test_one_precision_reads_whole_prefixes_and_multiplies_at_one(demo_store: DemoStore) -> None:
    """What is not asked for changes nothing: one read and one product for each miss."""
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream = ExpertStream(store, ops, 32, 3, QUIET)
    size, stride = store.layout.prefix_bytes(3), store.layout.stride
    submit, asked = stream.reader.submit, []

    def watch(reads: list[Read], *priority: int) -> None:
        asked.extend(reads)
        submit(reads, *priority)

    stream.reader.submit = watch  # type: ignore[method-assign,assignment]
    ids, x, weights = inputs(2, 4, 3)
    request = stream.request(0, ids)
    found = stream.compute(request, x, weights, x)
    assert [read.key for read in asked] == [(0, int(e)) for e in np.unique(ids)]
    assert not any(read.bits or read.have for read in asked)
    assert stream.stats.bytes_read == len(asked) * size < len(asked) * stride
    assert request.bits is None and list(stream._kernels) == [3] and stream._refine is None
    expected = ops.combine(outputs(store, ops, 0, ids, x, 3), weights, x)
    assert np.array_equal(found, expected)


def test_recording_is_refused(demo_store: DemoStore) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    with pytest.raises(UsageError, match="several precisions"):
        ExpertStream(store, ops, 8, Precision(2, 4), recorder=object())  # type: ignore[arg-type]


def test_what_is_being_refined_stays_in_its_slot(demo_store: DemoStore) -> None:
    """While others pass through the cache, and until it is multiplied at its new bits."""
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream = mixed(store, ops, 8, refine=True)
    submit, held = stream.reader.submit, []

    def watch(reads: list[Read], priority: int = DEMAND) -> None:
        if priority == DEMAND:
            submit(reads)
        else:
            held.extend(reads)  # the drive is never idle

    stream.reader.submit = watch  # type: ignore[method-assign]
    ids, x, weights = inputs(1, 2, 9)
    for _ in range(2):
        coarse = stream.compute(stream.request(0, ids), x, weights, x)
    assert sorted(read.key[1] for read in held) == sorted(ids[0].tolist())
    others = np.setdiff1d(np.arange(EXPERTS, dtype=np.int32), ids)[:30]
    for other in others.reshape(-1, 1, 2):
        stream.compute(stream.request(0, other), x, weights, x)
        assert all(stream.residency.slot(read.key) == read.slot for read in held)
    submit(held, BACKGROUND)
    stream.reader.queue.drain()
    found = stream.compute(stream.request(0, ids), x, weights, x)
    exact = ops.combine(outputs(store, ops, 0, ids, x, 4), weights, x)
    assert np.array_equal(found, exact) and not np.array_equal(found, coarse)
    assert stream.stats.refined == 2
    held.clear()
    for other in others.reshape(-1, 1, 2):  # now they may go
        stream.compute(stream.request(0, other), x, weights, x)
    assert not any((0, int(expert)) in stream.residency for expert in ids[0])


def test_only_reads_ahead_are_cancelled(demo_store: DemoStore) -> None:
    store = Store.open(demo_store(4, 8))
    reader = RecordReader(store, 4, 4, StreamOptions(throttle=1.0))
    first, rest, ahead = Read((0, 1), 0), Read((0, 2), 1, 4, 2), Read((0, 3), 2, 2)
    reader.submit([first])  # after it nothing is issued for hours
    reader.submit([rest, ahead], BACKGROUND)
    assert reader.cancel_background() == [ahead]
    assert sorted(read.key for read in reader._reads.values()) == [first.key, rest.key]
    reader.queue.close()
