"""Route traces: their statistics, and the engine on a trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.measure.routes import (
    TracedExperts,
    generate_trace,
    load_trace,
    overlap,
    replay,
    routed_by,
    save_trace,
    statistics,
    trace_for,
)
from headgate.measure.synth import SynthOptions, shape_config, synth
from headgate.store import Store
from tests.cli.test_run import headgate
from tests.conftest import DemoStore
from tests.measure.test_synth import small_config


def test_trace_has_the_published_statistics() -> None:
    trace = trace_for(shape_config("qwen3.5-397b-a17b", layers=6), 1600, k=4)
    found = statistics(trace, 512)
    assert found.overlap == pytest.approx(0.25, abs=0.02)
    published = {16: 0.49, 32: 0.59, 64: 0.68, 128: 0.71}
    assert found.hit_rates.keys() == published.keys()
    for slots, rate in published.items():
        assert found.hit_rates[slots] == pytest.approx(rate, abs=0.02)


@settings(deadline=None, max_examples=25)
@given(
    experts=st.integers(1, 40),
    k=st.integers(1, 40),
    layers=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_every_token_has_k_distinct_experts(experts: int, k: int, layers: int, seed: int) -> None:
    k = min(k, experts)
    trace = generate_trace(20, layers, experts, k, seed)
    assert trace.shape == (20, layers, k) and trace.dtype == np.int16
    assert trace.min() >= 0 and trace.max() < experts
    assert (np.diff(np.sort(trace, axis=-1), axis=-1) > 0).all()
    assert np.array_equal(trace, generate_trace(20, layers, experts, k, seed))


def test_another_seed_is_another_trace() -> None:
    assert not np.array_equal(generate_trace(9, 2, 64, 4, 0), generate_trace(9, 2, 64, 4, 1))


def test_replay_of_a_trace_counted_by_hand() -> None:
    trace = np.array([[[0, 1]], [[1, 2]], [[0, 1]], [[3, 0]]], np.int16)
    assert overlap(trace) == pytest.approx((1 + 1 + 1) / 6)
    # Two slots: 1; then 0 has gone, 1 is there; then 0 is there.
    assert replay(trace, 2) == pytest.approx(3 / 8)
    assert replay(trace, 4) == pytest.approx(4 / 8)
    assert replay(trace, 4, skip=2) == pytest.approx(3 / 4)
    # One slot: the second expert takes the place of the first.
    assert replay(trace, 1) == pytest.approx(1 / 8)


def test_shared_cache_is_filled_by_all_layers() -> None:
    trace = np.zeros((10, 3, 1), np.int16)
    assert replay(trace, 1) == pytest.approx(0.9)
    assert replay(trace, 2, shared=True) == 0  # below one token's cycle LRU never hits
    assert replay(trace, 3, shared=True) == pytest.approx(0.9)


def test_engine_follows_the_trace(tmp_path: Path) -> None:
    config = small_config(num_experts=32)
    store = Store.open(synth(tmp_path / "s", config, SynthOptions()).out)
    engine = Engine(store, context=200, threads=1)
    trace = trace_for(config, 60)
    asked: list[tuple[int, list[list[int]]]] = []
    request = engine.experts.request

    def note(layer: int, ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> object:
        asked.append((layer, ids.tolist()))
        return request(layer, ids)

    engine.experts.request = note  # type: ignore[assignment, method-assign]
    source = engine.experts
    with routed_by(engine, trace) as traced:
        session = engine.new_session()
        session.append(list(range(50)), chunk=20)
        for token in range(15):
            session.append([token])
        assert traced.stats is source.stats
    assert engine.experts is source
    for layer in range(3):
        found = [row for number, rows in asked if number == layer for row in rows]
        assert found == [*trace[:, layer].tolist(), *trace[:5, layer].tolist()]
    traced.restart()
    traced.request(1, np.zeros((1, 2), np.int32))
    assert asked[-1] == (1, [trace[0, 1].tolist()])


def test_tracing_the_routers_own_choice_changes_nothing(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(), context=64, threads=1)
    layers = engine.config.moe_layers
    chosen: list[list[list[int]]] = [[] for _ in layers]
    request = engine.experts.request

    def note(layer: int, ids: np.ndarray[tuple[int, int], np.dtype[np.int32]]) -> object:
        chosen[layer] += ids.tolist()
        return request(layer, ids)

    engine.experts.request = note  # type: ignore[assignment, method-assign]
    expected = engine.new_session().append([5, 6, 7, 8])
    del engine.experts.request
    with routed_by(engine, np.array(chosen, np.int16).swapaxes(0, 1)):
        assert np.array_equal(engine.new_session().append([5, 6, 7, 8]), expected)


def test_trace_that_does_not_fit_the_model_is_refused(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(), context=64, threads=1)
    layers, k = len(engine.config.moe_layers), engine.config.num_experts_per_tok
    experts = engine.config.num_experts
    with (
        pytest.raises(UsageError, match="layers"),
        routed_by(engine, generate_trace(3, layers + 1, experts, k)),
    ):
        pass
    with pytest.raises(UsageError, match="expert"), routed_by(engine, np.full((1, 1, 1), experts)):
        pass
    with routed_by(engine, generate_trace(3, layers, experts, k + 1)) as traced:
        assert isinstance(traced, TracedExperts)
        with pytest.raises(UsageError, match="experts per token"):
            engine.new_session().append([1])


def test_impossible_traces_are_refused() -> None:
    for sizes in ((0, 1, 4, 1), (1, 1, 4, 5), (1, 1, 1 << 17, 1)):
        with pytest.raises(UsageError):
            generate_trace(*sizes)


def test_trace_files(tmp_path: Path) -> None:
    trace = generate_trace(7, 2, 16, 3)
    save_trace(tmp_path / "t.npz", trace, 16)
    assert np.array_equal(load_trace(tmp_path / "t.npz"), trace)
    (tmp_path / "noise.npz").write_bytes(b"PK noise")
    np.savez(tmp_path / "other.npz", trace=np.zeros((2, 2)))
    np.savez(tmp_path / "nothing.npz", routes=np.zeros((2, 2)))
    for name in ("absent.npz", "noise.npz", "other.npz", "nothing.npz"):
        with pytest.raises(UsageError, match=name):
            load_trace(tmp_path / name)


def test_command_writes_store_and_trace(tmp_path: Path) -> None:
    config, store, trace = (tmp_path / name for name in ("config.json", "s.headgate", "t.npz"))
    config.write_text(json.dumps(small_config()))
    done = headgate(
        "synth", store, "--like", config, "--layers", 2, "--trace", trace, "--tokens", 50, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["layers"] == 2 and found["bytes_per_s"] > 0
    assert found["trace"]["overlap"] > 0 and found["trace"]["hit_rates"]
    assert len(Store.open(store).manifest.layers) == 2
    assert load_trace(trace).shape == (50, 2, 2)
    refused = headgate("synth", "--like", config)
    assert refused.returncode == 2 and "nothing to write" in refused.stderr
