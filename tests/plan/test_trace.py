"""Route traces: what a run recorded is what it did, whole or cut."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.engine import Engine
from headgate.errors import ResourceError, UsageError
from headgate.measure import trace as trace_module
from headgate.measure.trace import TraceRecorder, require_pyarrow
from headgate.ops import load_ops
from headgate.plan.replay import BELADY, Counts, demands, policy_for, repeat, simulate
from headgate.plan.trace_file import Trace, load
from headgate.store import Store
from headgate.stream import POLICIES, ExpertStream, StreamOptions
from tests.conftest import DemoStore

PROMPT = [1, 50, 300, 77, 9, 400, 12, 7, 150, 33, 21, 90]


def record(
    store: Path, path: Path, slots: int, tokens: int = 8, chunk: int | None = None, **options: Any
) -> tuple[Trace, ExpertStream, list[int]]:
    """A short answer of the demo with a cache of ``slots``, traced."""
    engine = Engine.load(store)
    with TraceRecorder(path) as recorder:
        engine.experts = ExpertStream(
            engine.store, engine.ops, slots, 4, StreamOptions(**options), recorder
        )
        session = engine.new_session()
        logits = session.append(PROMPT, chunk=chunk)
        text = []
        for _ in range(tokens):
            text.append(int(logits.argmax()))
            logits = session.append(text[-1:])
    return load(path), engine.experts, text


def counted(stream: ExpertStream) -> tuple[int, int, int]:
    return stream.stats.hits, stream.stats.misses, stream.residency.evictions


def sums(counts: Counts) -> tuple[int, int, int]:
    return sum(counts.hits), sum(counts.misses), counts.evictions


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(("slots", "lookahead"), [(9, 8), (40, 8), (40, 0)])
def test_replay_gives_the_hits_misses_and_evictions_of_the_run(
    demo_store: DemoStore, tmp_path: Path, policy: str, slots: int, lookahead: int
) -> None:
    trace, stream, _ = record(
        demo_store(4, 8), tmp_path / "t", slots, tokens=70, policy=policy, lookahead=lookahead
    )
    assert sums(repeat(trace)) == counted(stream)
    assert [trace.total(name) for name in ("hits", "misses", "evictions")] == list(counted(stream))
    assert trace.total("bytes") == stream.stats.bytes_read
    if lookahead and slots > 9:
        assert stream.stats.ahead_used > 0


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_prompt_chunks_larger_than_the_cache_replay_too(
    demo_store: DemoStore, tmp_path: Path, policy: str, chunk: int | None
) -> None:
    trace, stream, _ = record(
        demo_store(4, 8), tmp_path / "t", 10, tokens=3, chunk=chunk, policy=policy
    )
    assert trace.columns["tokens"].max() == (chunk or len(PROMPT))
    assert sums(repeat(trace)) == counted(stream)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_simulation_is_exact_where_reads_cannot_overtake_evictions(
    demo_store: DemoStore, tmp_path: Path, policy: str
) -> None:
    """Without reads ahead, and with room for what a layer asks for at once."""
    trace, stream, _ = record(
        demo_store(4, 8), tmp_path / "t", 60, tokens=30, chunk=1, policy=policy, lookahead=0
    )
    wanted = demands(trace.rows())
    assert sums(simulate(wanted, 60, policy_for(policy, 60, wanted))) == counted(stream)


def test_run_without_a_cache_replays(demo_store: DemoStore, tmp_path: Path) -> None:
    trace, stream, _ = record(demo_store(4, 8), tmp_path / "t", 40, cache=False, lookahead=0)
    assert sums(repeat(trace)) == counted(stream) and stream.stats.hits == 0
    wanted = demands(trace.rows())
    simulated = simulate(wanted, 40, policy_for("lfu", 40, wanted), cached=False)
    assert sums(simulated)[:2] == counted(stream)[:2]


def test_recording_changes_nothing(demo_store: DemoStore, tmp_path: Path) -> None:
    _, _, traced = record(demo_store(4, 8), tmp_path / "t", 40)
    session = Engine.load(demo_store(4, 8)).new_session()
    logits, text = session.append(PROMPT), []
    for _ in traced:
        text.append(int(logits.argmax()))
        logits = session.append(text[-1:])
    assert text == traced


def test_rows_are_the_requests(demo_store: DemoStore, tmp_path: Path) -> None:
    trace, stream, _ = record(demo_store(4, 8), tmp_path / "t", 40, tokens=2)
    layers, k = len(stream.store.manifest.layers), 8
    assert len(trace) == 3 * layers
    assert trace.columns["layer"].tolist() == [*range(layers)] * 3
    tokens = [len(PROMPT)] * layers + [1] * (2 * layers)
    assert trace.columns["tokens"].tolist() == tokens
    assert trace.columns["token"].tolist() == [0] * layers + [12] * layers + [13] * layers
    for row in trace.rows():
        assert row.experts.shape == (row.tokens, k)
        assert all(len(set(ids)) == k for ids in row.experts.tolist())
    # Router weights of a token add up to one, as far as half precision goes.
    weights = trace.columns["weights"].astype(np.float64).reshape(-1, k).sum(axis=1)
    assert np.abs(weights - 1).max() < 2e-3
    assert trace.columns["complete"].all() and trace.damage is None
    assert (trace.columns["seconds"] >= trace.columns["wait_s"]).all()
    assert (np.diff(trace.columns["start_s"]) > 0).all()


def test_optimum_is_no_worse_than_any_policy(demo_store: DemoStore, tmp_path: Path) -> None:
    trace, _, _ = record(demo_store(4, 8), tmp_path / "t", 40, tokens=40, chunk=1)
    wanted = demands(trace.rows())
    for slots in (12, 40, 100):
        rates = {
            name: simulate(wanted, slots, policy_for(name, slots, wanted)).rate()
            for name in (*POLICIES, BELADY)
        }
        assert max(rates.values()) == rates[BELADY]


def test_request_that_was_never_computed_is_in_the_trace(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    engine = Engine.load(demo_store(4, 8))
    x, weights = np.ones((1, 256), np.float32), np.ones((1, 2), np.float32)
    with TraceRecorder(tmp_path / "t") as recorder:
        stream = ExpertStream(engine.store, engine.ops, 12, 4, recorder=recorder)
        stream.request(0, np.array([[3, 4]], np.int32))
        stream.compute(stream.request(1, np.array([[3, 9]], np.int32)), x, weights, x)
        stream.compute(stream.request(0, np.array([[3, 4]], np.int32)), x, weights, x)
    trace = load(tmp_path / "t")
    assert trace.columns["complete"].tolist() == [False, True, True]
    assert sums(repeat(trace)) == counted(stream)


# Files ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(demo_store: DemoStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of several batches."""
    path = tmp_path_factory.mktemp("traces") / "t"
    before, trace_module.BATCH_ROWS = trace_module.BATCH_ROWS, 16
    try:
        record(demo_store(4, 8), path, 40, tokens=20)
    finally:
        trace_module.BATCH_ROWS = before
    return path


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_cut_file_is_read_up_to_the_cut(whole: Path, data: st.DataObject) -> None:
    content, complete = whole.read_bytes(), load(whole)
    cut = data.draw(st.integers(0, len(content) - 1))
    path = whole.with_name("cut")
    path.write_bytes(content[:cut])
    try:
        found = load(path)
    except UsageError as error:
        # Not even the first batch.
        assert "is not a route trace" in str(error) or "holds no requests" in str(error)
        return
    rows = len(found)
    assert 16 <= rows <= len(complete) and rows % 16 in (0, len(complete) % 16)
    for name in ("layer", "hits", "bytes"):
        assert np.array_equal(found.columns[name], complete.columns[name][:rows])
    if found.damage is None:
        assert cut >= len(content) - 8  # only the mark of the end is missing
    else:
        assert "damaged from byte" in found.damage and f"of {cut} on" in found.damage
    assert sums(repeat(found))[0] == complete.columns["hits"][:rows].sum()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_byte_never_goes_unseen(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    complete = load(whole)
    at = data.draw(st.integers(0, len(content) - 9))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = whole.with_name("changed")
    path.write_bytes(content)
    try:
        found = load(path)
    except UsageError:
        return
    # Padding and what describes the file may change; no row ever does.
    for name, values in found.columns.items():
        expected = complete.columns[name][: len(values)]
        assert np.array_equal(values, expected, equal_nan=values.dtype.kind == "f"), name
    assert found.damage is not None or len(found) == len(complete)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"PAR1 something", b"{}"])
def test_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UsageError, match="is not a route trace"):
        load(tmp_path / "t")


def test_missing_file_and_folder_are_refused(demo_store: DemoStore, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match="cannot read"):
            load(path)
    with pytest.raises(ResourceError, match="cannot write"):
        ExpertStream(
            Store.open(demo_store(4, 8)),
            load_ops(),
            40,
            4,
            recorder=TraceRecorder(tmp_path / "absent" / "t"),
        )


def test_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (require_pyarrow, lambda: TraceRecorder(tmp_path / "t")):
        with pytest.raises(UsageError, match=r"headgate\[traces\]"):
            act()
    assert not list(tmp_path.iterdir())


def test_no_file_stays_when_nothing_was_to_be_recorded(tmp_path: Path) -> None:
    with TraceRecorder(tmp_path / "t"):
        pass
    assert not list(tmp_path.iterdir())


def test_full_disk_ends_the_trace_and_not_the_run(
    demo_store: DemoStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trace_module, "BATCH_ROWS", 8)

    class Full:
        """A file on a full disk."""

        closed = False

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: Any) -> int:
            if self._file.tell() > 6000:
                raise OSError(28, "No space left on device")
            return int(self._file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    engine = Engine.load(demo_store(4, 8))
    recorder = TraceRecorder(tmp_path / "t")
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda *args: Full(opened(*args)))
    engine.experts = ExpertStream(engine.store, engine.ops, 40, 4, recorder=recorder)
    monkeypatch.setattr(Path, "open", opened)
    session = engine.new_session()
    for _ in range(20):
        session.append([5])
    recorder.close()
    assert "the trace" in capsys.readouterr().err
    assert len(session.tokens) == 20
