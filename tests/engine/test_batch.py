"""Several sequences in one pass of the model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headgate.engine import Engine
from headgate.engine.chunks import chunk_end
from headgate.errors import DamagedStore
from headgate.models import GRID, Part
from headgate.stream import ExpertStream, StreamOptions
from tests.conftest import DemoStore
from tests.stream.test_experts import flip

LENGTHS = (3, 17, 70, 200)


def tokens(count: int, seed: int) -> list[int]:
    """The same ones for the same seed."""
    return [int(x) for x in np.random.default_rng(seed).integers(1, 4000, count)]


@pytest.fixture(scope="module", params=[(16, 16), (4, 8)], ids=str)
def engine(demo_store: DemoStore, request: pytest.FixtureRequest) -> Engine:
    return Engine.load(demo_store(*request.param))


def run(engine: Engine, parts: Sequence[Part], **options: Any) -> list[npt.NDArray[np.float32]]:
    return engine.model.forward_many(parts, engine.experts, **options)


def test_sequences_decoded_together_get_the_bits_they_get_alone(engine: Engine) -> None:
    prompts = [tokens(n, n) for n in LENGTHS]
    steps = [tokens(5, 100 + n) for n in LENGTHS]
    alone, together = [[engine.new_session() for _ in LENGTHS] for _ in range(2)]
    for sessions in (alone, together):
        for session, prompt in zip(sessions, prompts, strict=True):
            session.append(prompt)
    for i in range(5):
        expected = [s.append([step[i]]) for s, step in zip(alone, steps, strict=True)]
        parts = [Part([step[i]], s.state) for s, step in zip(together, steps, strict=True)]
        found = run(engine, parts)
        for a, b in zip(expected, found, strict=True):
            assert np.array_equal(a, b[0])
    for a_session, b_session in zip(alone, together, strict=True):
        length = a_session.state.length
        assert b_session.state.length == length
        pairs = zip(a_session.state.arrays(length), b_session.state.arrays(length), strict=True)
        assert all(np.array_equal(x, y) for x, y in pairs)


def test_prompt_beside_single_tokens_changes_nobody(engine: Engine) -> None:
    alone, together = [[engine.new_session() for _ in range(3)] for _ in range(2)]
    work = [tokens(1, 1), tokens(90, 2), tokens(1, 3)]
    for sessions in (alone, together):
        sessions[0].append(tokens(30, 4))
        sessions[2].append(tokens(5, 5))
    expected = [s.append(ids, all_logits=True) for s, ids in zip(alone, work, strict=True)]
    parts = [Part(ids, s.state) for s, ids in zip(together, work, strict=True)]
    found = run(engine, parts, all_logits=True)
    assert [len(x) for x in found] == [1, 90, 1]
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("size", [64, 192, 100])
def test_cuts_on_the_grid_change_no_bit(engine: Engine, size: int) -> None:
    ids = tokens(400, 6)
    whole, parts = engine.new_session(), engine.new_session()
    expected = whole.append(ids, chunk=1000)
    start = 0
    while start < len(ids):
        end = chunk_end(start, len(ids), size)
        assert start < end <= start + size and (end % GRID == 0 or end == len(ids))
        found = parts.append(ids[start:end], chunk=1000)
        start = end
    assert np.array_equal(found, expected)
    assert np.array_equal(parts.append([7]), whole.append([7]))


def test_marks_are_the_state_at_that_position(engine: Engine) -> None:
    ids, marked, cut = tokens(200, 7), engine.new_session(), engine.new_session()
    part = Part(ids, marked.state, marks=(64, 128, 200))
    (logits,) = run(engine, [part])
    assert np.array_equal(logits[0], engine.new_session().append(ids))
    assert sorted(part.marked) == [64, 128, 200]
    for start, end in ((0, 64), (64, 128), (128, 200)):
        cut.append(ids[start:end])
        found = marked.state.copy(end, part.marked[end])
        assert all(map(np.array_equal, found, cut.state.arrays(end)))


def test_state_used_again_is_that_of_an_empty_sequence(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8))
    first = engine.new_session()
    expected = first.append(tokens(70, 8))
    state = first.state
    first.close()
    assert len(engine.states) == 1
    again = engine.new_session()
    assert again.state is state and len(engine.states) == 0
    assert np.array_equal(again.append(tokens(70, 8)), expected)


def test_state_returns_when_its_session_is_gone(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=2)
    sessions = [engine.new_session() for _ in range(3)]
    del sessions
    # No more wait than the budget has room for.
    assert len(engine.states) == 2


def test_lookahead_serves_sequences_together_and_changes_no_text(demo_store: DemoStore) -> None:
    found = []
    for most in (0, 8):
        engine = Engine.load(demo_store(4, 8))
        options = StreamOptions(lookahead=most)
        engine.experts = ExpertStream(engine.store, engine.ops, 40, 4, options)
        sessions = [engine.new_session() for _ in range(3)]
        # Beyond the stretch of a trial without, into the one with.
        for i in range(20):
            logits = run(engine, [Part([10 + i + n], s.state) for n, s in enumerate(sessions)])
        found.append(np.concatenate(logits))
    assert np.array_equal(found[0], found[1])
    assert engine.experts.stats.ahead_used > 0


def experts_of(engine: Engine, ids: Sequence[int]) -> set[tuple[int, int]]:
    """(layer, expert) of everything that a sequence is routed to."""
    found: set[tuple[int, int]] = set()
    request = engine.experts.request

    def traced(layer: int, routed: npt.NDArray[np.int32]) -> Any:
        found.update((layer, int(expert)) for expert in routed.ravel())
        return request(layer, routed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.experts, "request", traced)
        engine.new_session().append(ids)
    return found


def test_damage_stops_the_sequence_that_needs_it_and_no_other(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    shutil.copytree(demo_store(4, 8), tmp_path / "store")
    prompts = [tokens(2, n) for n in (11, 12, 13)]
    whole = Engine.load(tmp_path / "store")
    expected = [whole.new_session().append(ids) for ids in prompts]
    needs = [experts_of(whole, ids) for ids in prompts]
    layer, expert = min(needs[1] - needs[0] - needs[2])
    store = whole.store
    flip(store.expert_path(layer), expert * store.layout.stride + 99)
    engine = Engine.load(tmp_path / "store")
    sessions = [engine.new_session() for _ in prompts]
    parts = [Part(ids, session.state) for ids, session in zip(prompts, sessions, strict=True)]
    found = run(engine, parts)
    assert [type(part.error) for part in parts] == [type(None), DamagedStore, type(None)]
    assert f"layer {layer}, expert {expert}" in str(parts[1].error)
    assert np.array_equal(found[0][0], expected[0]) and np.array_equal(found[2][0], expected[2])
    with pytest.raises(DamagedStore):
        engine.new_session().append(prompts[1])
    # Those that go on are not affected later either.
    again = [Part([5], part.state) for part in (parts[0], parts[2])]
    for part, ids, logits in zip(again, (prompts[0], prompts[2]), run(whole, again), strict=True):
        session = whole.new_session()
        session.append(ids)
        assert part.error is None and np.array_equal(logits[0], session.append([5]))
