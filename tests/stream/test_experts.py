"""The expert stream against experts computed from the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.engine import Engine
from headgate.errors import DamagedStore
from headgate.ops import ExpertBatch, load_ops
from headgate.store import Store
from headgate.stream import ExpertStream, StreamOptions
from tests.conftest import DemoStore


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    slots=st.integers(1, 40),
    steps=st.lists(st.tuples(st.integers(0, 7), st.integers(1, 12)), min_size=1, max_size=6),
    k=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_any_cache_size_gives_the_same_bits(
    demo_store: DemoStore, slots: int, steps: list[tuple[int, int]], k: int, seed: int
) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops(threads=2)
    stream, kernel = ExpertStream(store, ops, slots, 4), ops.expert_kernel(store.layout, 4)
    rng = np.random.default_rng(seed)
    for layer, tokens in steps:
        ids = np.stack([rng.permutation(32)[:k] for _ in range(tokens)]).astype(np.int32)
        x = rng.standard_normal((tokens, 256), dtype=np.float32)
        weights = rng.random((tokens, k), dtype=np.float32)
        base = rng.standard_normal((tokens, 256), dtype=np.float32)
        found = stream.compute(stream.request(layer, ids), x, weights, base)
        # All at once from the whole file, in the order of the pairs.
        arena = np.fromfile(store.expert_path(layer), np.uint8)
        y, pairs = np.zeros((tokens * k, 256), np.float32), np.arange(tokens * k, dtype=np.int32)
        batch = ExpertBatch(
            [int(e) * store.layout.stride for e in ids.ravel()],
            np.arange(tokens * k + 1, dtype=np.int32),
            pairs // k,
            pairs,
        )
        kernel(arena, batch, x, y)
        assert np.array_equal(found, ops.combine(y, weights, base))


def test_counts_are_those_of_the_requests(demo_store: DemoStore) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    stream = ExpertStream(store, ops, 32, 2)
    ids = np.array([[1, 2], [2, 3]], np.int32)
    x, weights = np.zeros((2, 256), np.float32), np.ones((2, 2), np.float32)
    for _ in range(2):
        stream.compute(stream.request(0, ids), x, weights, x)
    assert (stream.stats.hits, stream.stats.misses) == (3, 3)
    assert stream.stats.bytes_read == 3 * store.layout.prefix_bytes(2)


def test_damaged_record_is_named_and_the_stream_survives(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    shutil.copytree(demo_store(4, 8), tmp_path / "store")
    store, ops = Store.open(tmp_path / "store"), load_ops()
    flip(store.expert_path(5), 7 * store.layout.stride + store.layout.segments[1].offset + 99)
    stream = ExpertStream(store, ops, 16, 4)
    x, weights = np.ones((1, 256), np.float32), np.ones((1, 2), np.float32)
    for _ in range(2):
        request = stream.request(5, np.array([[6, 7]], np.int32))
        with pytest.raises(DamagedStore, match="layer 5, expert 7, segment 1"):
            stream.compute(request, x, weights, x)
    stream.compute(stream.request(5, np.array([[6, 8]], np.int32)), x, weights, x)
    # At two bits the damaged segment is not even read.
    coarse = ExpertStream(store, ops, 16, 2)
    coarse.compute(coarse.request(5, np.array([[6, 7]], np.int32)), x, weights, x)


def test_request_whose_caller_was_interrupted_is_forgotten(demo_store: DemoStore) -> None:
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    x, weights = np.ones((1, 256), np.float32), np.ones((1, 3), np.float32)
    ids = np.array([[4, 5, 6]], np.int32)
    clean = ExpertStream(store, ops, 4, 4)
    expected = clean.compute(clean.request(3, ids), x, weights, x)
    stream = ExpertStream(store, ops, 4, 4)
    stream.request(3, np.array([[5, 9, 11]], np.int32))
    stream.request(2, np.array([[5, 1, 2]], np.int32))
    assert np.array_equal(stream.compute(stream.request(3, ids), x, weights, x), expected)


@pytest.mark.parametrize("slots", [9, 24, 40])
def test_lookahead_changes_reads_but_not_the_text(demo_store: DemoStore, slots: int) -> None:
    prompt = [1, 50, 300, 77]
    texts, streams = [], []
    for most in (0, 8):
        engine = Engine.load(demo_store(4, 8))
        options = StreamOptions(lookahead=most)
        engine.experts = ExpertStream(engine.store, engine.ops, slots, 4, options)
        # Long enough for a whole trial.
        texts.append(list(engine.new_session().generate(prompt, 70, stop=frozenset())))
        streams.append(engine.experts)
    assert texts[0] == texts[1]
    assert streams[0].stats.ahead_reads == 0 and streams[1].stats.ahead_used > 0


def test_reads_ahead_survive_the_end_of_lookahead(demo_store: DemoStore) -> None:
    """What is on its way when a stretch ends is neither lost nor taken for read."""
    store, ops = Store.open(demo_store(4, 8)), load_ops()
    x, weights = np.ones((1, 256), np.float32), np.ones((1, 4), np.float32)
    ids = np.arange(4, dtype=np.int32)[None]
    clean = ExpertStream(store, ops, 8, 4, StreamOptions(lookahead=0))
    expected = clean.compute(clean.request(3, ids), x, weights, x)
    for _ in range(20):
        stream = ExpertStream(store, ops, 64, 4, StreamOptions(throttle=20e6))
        stream.suggest(3, np.array([2, 3, 9, 10], np.int32))
        assert np.array_equal(stream.compute(stream.request(3, ids), x, weights, x), expected)
        assert np.array_equal(
            stream.compute(stream.request(3, ids + 8), x, weights, x),
            clean.compute(clean.request(3, ids + 8), x, weights, x),
        )


@pytest.mark.parametrize(
    "options",
    [
        StreamOptions(read_mode="buffered"),
        StreamOptions(read_mode="mmap"),
        StreamOptions(cache=False),
        StreamOptions(overlap=False),
        StreamOptions(chunk_bytes=4096, depth=3),
        StreamOptions(throttle=50e6),
    ],
    ids=str,
)
def test_every_mechanism_can_be_turned_off(demo_store: DemoStore, options: StreamOptions) -> None:
    prompt = [1, 50, 300, 77]
    texts = []
    for chosen in (StreamOptions(), options):
        engine = Engine.load(demo_store(4, 8), stream=chosen)
        engine.experts = ExpertStream(engine.store, engine.ops, 24, 4, chosen)
        texts.append(list(engine.new_session().generate(prompt, 12, stop=frozenset())))
        if not chosen.cache:
            assert engine.experts.stats.hits == 0 and len(engine.experts.residency) == 0
    assert texts[0] == texts[1]
