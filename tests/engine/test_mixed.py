"""Knobs that choose experts and their bits: what they do, what they refuse, what they leave."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.engine import Engine, PrefixCache, Scheduler, Tokens, TurnOptions
from headgate.engine.prefix_cache import identity_of
from headgate.errors import HeadgateError, UsageError
from headgate.evals.point import expert_bytes_per_token
from headgate.measure.sources import CountedExperts
from headgate.measure.trace import TraceRecorder
from headgate.models import Part, Routing
from headgate.ops.reference import ReferenceOps
from headgate.stream import ExpertStream, StreamOptions
from tests.cli.test_run import headgate
from tests.conftest import DemoStore
from tests.engine.test_batch import run, tokens

OPS = ReferenceOps()
Floats = npt.NDArray[np.float32]
#: Modes whose text depends on the knobs alone.
PURE: dict[str, dict[str, Any]] = {
    "2:4": {"expert_bits": "2:4"},
    "layers": {"expert_bits": "2:4@0+-2"},
    "mass": {"router_mass": 0.8},
    "both": {"expert_bits": "3:4", "top_share": 0.2, "router_mass": 0.7, "router_floor": 2},
}
pure = pytest.mark.parametrize("mode", PURE)


def load(store: Path, slots: int | None = None, lookahead: int = 8, **options: Any) -> Engine:
    engine = Engine.load(store, threads=2, **options)
    if slots is not None:
        made = StreamOptions(lookahead=lookahead)
        precision = engine.experts.precision
        engine.experts = ExpertStream(engine.store, engine.ops, slots, precision, made)
    return engine


def answer(engine: Engine, prompt: Sequence[int] = (1, 50, 300, 77), count: int = 8) -> list[int]:
    return list(engine.new_session().generate(prompt, count, stop=frozenset()))


def logits_of(tokens_: int, experts: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return 3 * rng.standard_normal((tokens_, experts)).astype(np.float32)


# What the router's choice becomes ------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    k=st.integers(1, 8), mass=st.floats(0.05, 0.99), floor=st.integers(1, 8), seed=st.integers(0)
)
def test_mass_keeps_the_fewest_that_reach_it(k: int, mass: float, floor: int, seed: int) -> None:
    logits = logits_of(5, 16, seed % 1000)
    ids, weights = OPS.route(logits, k)
    floor = min(floor, k)
    found = Routing(k, mass, floor).choose(OPS, logits, np.zeros(5, np.bool_), _nobody)
    for row in range(5):
        count = int((found.ids[row] >= 0).sum())
        enough = [n for n in range(1, k + 1) if weights[row, :n].astype(np.float64).sum() >= mass]
        assert count == max(floor, enough[0] if enough else k)
        kept = weights[row, :count]
        assert found.ids[row, :count].tolist() == ids[row, :count].tolist()
        assert np.allclose(found.weights[row, :count], kept / kept.sum(), atol=1e-6)
        assert not found.weights[row, count:].any() and (found.ids[row, count:] == -1).all()
    assert found.fine is None and found.ids.shape == found.weights.shape


def _nobody(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    raise AssertionError("asked what is in memory")


def test_fine_are_those_with_the_weight() -> None:
    logits = logits_of(20, 16, 1)
    found = Routing(4, top_share=0.25).choose(OPS, logits, np.ones(20, np.bool_), _nobody)
    assert found.fine is not None and np.array_equal(found.fine, found.weights >= 0.25)
    some = found.fine.sum(-1)
    assert some.min() >= 1 and some.max() <= 3  # one of four has at least a quarter
    # What is left out is never fine.
    both = Routing(4, mass=0.5, top_share=0.01).choose(OPS, logits, np.ones(20, np.bool_), _nobody)
    assert both.fine is not None and np.array_equal(both.fine, both.ids >= 0)


def test_all_layers_at_the_higher_precision_are_that_precision(demo_store: DemoStore) -> None:
    prompt, store = tokens(40, 3), demo_store(4)
    found = {}
    for bits in (2, "2:4@7", "2:4@-1", "2:4@0+1+2+3+4+5+6", "2:4@0+1+2+3+4+5+6+7", 4):
        engine = load(store, expert_bits=bits)
        found[bits] = engine.new_session().append(prompt)
        assert bool(engine.lossy) == (bits != 4)
        if bits == "2:4@7":
            low, high = (engine.store.layout.prefix_bytes(n) for n in (2, 4))
            assert engine.experts.stats.wanted_bytes == 40 * 8 * (7 * low + high)
            assert engine.knobs["expert_bits"] == "2:4@7" and not engine.depends_on_cache
    assert np.array_equal(found["2:4@0+1+2+3+4+5+6+7"], found[4])
    assert np.array_equal(found["2:4@7"], found["2:4@-1"])
    different = [found[x] for x in (2, "2:4@7", "2:4@0+1+2+3+4+5+6", 4)]
    for a, b in itertools.combinations(different, 2):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("bits", "complaint"),
    [
        ("2:4@8", "there is no layer 8: those with experts are 0 to 7"),
        ("2:4@-9", "there is no layer -9"),
        ("4@1", "expected a number such as 4, or 2:4, or 2:4@-1"),
        ("2:4@", "expected a number such as 4"),
        ("1 6", "expected a number such as 4"),
        ("9" * 5000, "expected a number such as 4"),
        ("2:4@1,2", "expected a number such as 4"),
        ("4:2@1", "expected the lower number first"),
        ("2:8@1", "the store has no 8-bit experts to mix with others"),
    ],
)
def test_bits_by_layer_that_cannot_be(demo_store: DemoStore, bits: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=re.escape(complaint)):
        Engine.load(demo_store(4), expert_bits=bits)


@settings(max_examples=80, deadline=None)
@given(tol=st.floats(0.001, 0.6), mass=st.sampled_from([1.0, 0.8]), seed=st.integers(0, 999))
def test_near_ties_lose_no_more_than_allowed(tol: float, mass: float, seed: int) -> None:
    logits = logits_of(6, 24, seed) / 3
    held = np.random.default_rng(seed + 1).random(24) < 0.5
    drawn = np.array([True, True, False, True, False, True])
    exact = Routing(6, mass).choose(OPS, logits, drawn, _nobody)
    found = Routing(6, mass, prefer_cached=tol).choose(OPS, logits, drawn, lambda ids: held[ids])
    p = np.exp(logits.astype(np.float64))
    for row in range(6):
        before, after = (c.ids[row][c.ids[row] >= 0] for c in (exact, found))
        assert len(before) == len(after) == len(set(after.tolist()))
        assert p[row, after].sum() >= (1 - tol) * p[row, before].sum() * (1 - 1e-5)
        assert held[after].sum() >= held[before].sum()
        assert sorted(p[row, after], reverse=True) == p[row, after].tolist()
        if not drawn[row] or set(after) == set(before):
            assert np.array_equal(after, before)
            count = len(after)
            assert np.array_equal(found.weights[row, :count], exact.weights[row, :count])
        assert found.weights[row].sum() == pytest.approx(1, abs=1e-5)


def test_near_ties_are_taken_from_memory() -> None:
    """Four alike, the last two of which are in memory, and one far behind that is too."""
    logits = np.log(np.array([[0.25, 0.25, 0.24, 0.24, 0.02]], np.float32))
    held = np.array([False, False, True, True, True])
    routing = Routing(2, prefer_cached=0.05)
    drawn = np.ones(1, np.bool_)
    assert routing.choose(OPS, logits, drawn, lambda ids: held[ids]).ids.tolist() == [[2, 3]]
    narrow = Routing(2, prefer_cached=0.03)  # 0.02 of 0.5 is one exchange, not two
    assert narrow.choose(OPS, logits, drawn, lambda ids: held[ids]).ids.tolist() == [[0, 2]]


# What a sequence gets ------------------------------------------------------------


@pure
def test_text_depends_on_neither_cache_nor_chunks_nor_reads_ahead(
    demo_store: DemoStore, mode: str
) -> None:
    prompt, found = tokens(100, 3), []
    for slots, lookahead, chunk in ((9, 0, 64), (500, 8, None), (40, 8, 192)):
        engine = load(demo_store(4, 8), slots, lookahead, **PURE[mode])
        session = engine.new_session()
        logits = [session.append(prompt, chunk=chunk)]
        logits += [session.append([step], drawn=True) for step in tokens(6, 4)]
        found.append(np.stack(logits))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    exact = load(demo_store(4, 8)).new_session()
    assert not np.array_equal(exact.append(prompt), found[0][0])


@pure
def test_sequences_get_the_bits_they_get_alone(demo_store: DemoStore, mode: str) -> None:
    engine = load(demo_store(4, 8), 40, **PURE[mode])
    alone, together = [[engine.new_session() for _ in range(3)] for _ in range(2)]
    work = [tokens(1, 1), tokens(70, 2), tokens(1, 3)]
    for sessions in (alone, together):
        sessions[0].append(tokens(30, 4))
        sessions[2].append(tokens(5, 5))
    expected = [s.append(ids) for s, ids in zip(alone, work, strict=True)]
    parts = [Part(ids, s.state) for s, ids in zip(together, work, strict=True)]
    found = run(engine, parts)
    assert all(np.array_equal(a, b[0]) for a, b in zip(expected, found, strict=True))


def test_prompts_never_prefer_what_is_in_memory(demo_store: DemoStore) -> None:
    """A prompt gets the exact bits whatever the cache, in any company; an answer does not."""
    store, prompt = demo_store(4, 8), tokens(66, 6)
    exact = load(store).new_session()
    expected = exact.append(prompt)
    engine = load(store, 30, prefer_cached=0.5)
    answer(engine)  # something is in memory
    session = engine.new_session()
    assert np.array_equal(
        session.append(prompt[:65]), load(store).new_session().append(prompt[:65])
    )
    other = engine.new_session()
    other.append([5, 6])
    parts = [Part([7], other.state, drawn=True), Part(prompt[65:], session.state)]
    found = run(engine, parts)
    assert np.array_equal(found[1][0], expected)
    drawn, same = [], exact.append([9])
    for step in (False, True):
        fresh = load(store, 30, prefer_cached=0.5)
        one = fresh.new_session()
        one.append(prompt)
        drawn.append(np.array_equal(one.append([9], drawn=step), same))
    assert drawn == [True, False]


def test_preferring_saves_reads(demo_store: DemoStore) -> None:
    read = []
    for options in ({}, {"prefer_cached": 0.3}):
        engine = load(demo_store(4, 8), 60, lookahead=0, **options)
        answer(engine, tokens(20, 7), 30)
        read.append(engine.experts.stats.bytes_read)
    assert read[1] < 0.9 * read[0]


def test_generated_tokens_are_marked_as_such(demo_store: DemoStore) -> None:
    engine = load(demo_store(4, 8))
    seen: list[tuple[int, bool]] = []
    hidden = engine.model.hidden

    def watch(parts: Sequence[Part], experts: Any) -> Any:
        seen.extend((len(part.ids), part.drawn) for part in parts)
        return hidden(parts, experts)

    engine.model.hidden = watch  # type: ignore[method-assign]
    answer(engine, count=3)
    assert seen == [(4, False), (1, True), (1, True)]
    seen.clear()
    with Scheduler(engine) as scheduler:
        ticket = scheduler.submit([1, 50, 300, 77], TurnOptions(3, stop_ids=frozenset()))
        assert sum(len(e.steps) for e in ticket if isinstance(e, Tokens)) == 3
    assert seen == [(4, False), (1, True), (1, True)]


def test_refined_answers_become_exact(demo_store: DemoStore) -> None:
    store = demo_store(4, 8)
    engine, prompt = load(store, 512, lookahead=0, refine=True), tokens(12, 8)
    expected, found = load(store).new_session().append(prompt), []
    for _ in range(30):
        found.append(engine.new_session().append(prompt))
        engine.experts.reader.queue.drain()
    assert not np.array_equal(found[0], expected) and np.array_equal(found[-1], expected)
    stats, layout = engine.experts.stats, engine.store.layout
    rest = layout.stride - layout.prefix_bytes(2)
    unrefined = stats.bytes_read - stats.refined * rest
    assert stats.refined > 0 and unrefined % layout.prefix_bytes(2) == 0


# What the engine says of it ------------------------------------------------------


def test_knobs_are_named(demo_store: DemoStore) -> None:
    store = demo_store(4, 8)
    plain = Engine.load(store)
    assert plain.lossy == [] and plain.model.routing is None and not plain.depends_on_cache
    names = {"experts_per_token", "expert_bits", "backend", "exact_activations"}
    assert set(plain.knobs) == names
    engine = Engine.load(store, expert_bits="2:4", router_mass=0.9, prefer_cached=0.02, refine=True)
    assert engine.lossy == [
        "expert-bits 2:4 (stored 4)",
        "top-share 0.125",
        "refine from 2 bits",
        "router-mass 0.9",
        "prefer-cached 0.02",
    ]
    mine = {"top_share": 0.125, "refine": True, "router_mass": 0.9, "router_floor": 1}
    assert engine.knobs == {**plain.knobs, "expert_bits": "2:4", **mine, "prefer_cached": 0.02}
    off = Engine.load(store, expert_bits="4", router_mass=1.0, prefer_cached=0.0)
    assert off.knobs == plain.knobs and off.lossy == [] and off.model.routing is None
    assert plain.budget.slots * plain.store.layout.stride == plain.budget.experts
    assert engine.experts.reader.record_bytes == engine.store.layout.stride  # full slots


def test_default_path_asks_as_it_did(demo_store: DemoStore) -> None:
    """Layer and ids, nothing else, which is all that other sources of experts know."""
    plain, counted = load(demo_store(4, 8)), load(demo_store(4, 8))
    layers = counted.config.moe_layers
    counted.experts = CountedExperts(counted.experts, layers, 64)  # type: ignore[assignment]
    assert answer(plain) == answer(counted)
    assert list(plain.experts._kernels) == [4]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"expert_bits": "4:2"}, "the lower number first, such as 2:4"),
        ({"expert_bits": "4:4"}, "the lower number first"),
        ({"expert_bits": "2:8"}, "no 8-bit experts to mix with others; it can be read at 2, 3, 4"),
        ({"expert_bits": "8"}, "no 8-bit experts"),
        ({"expert_bits": "2:3:4"}, "expected a number such as 4, or 2:4"),
        ({"expert_bits": "four"}, "expected a number such as 4, or 2:4"),
        ({"expert_bits": "2:4", "top_share": 0.0}, "top share is 0.0"),
        ({"top_share": 0.5}, "there is one precision"),
        ({"router_mass": 0.0}, "router mass is 0.0, expected more than 0 and 1 at most"),
        ({"router_mass": 1.5}, "router mass is 1.5"),
        ({"router_mass": float("nan")}, "router mass is nan"),
        ({"router_floor": 2}, "a router floor is for a router mass"),
        ({"router_mass": 0.9, "router_floor": 9}, "router floor is 9, expected 1..8"),
        ({"prefer_cached": 1.0}, "prefer-cached is 1.0"),
        ({"prefer_cached": -0.1}, "prefer-cached is -0.1"),
        ({"expert_bits": 2, "refine": True}, "nothing to refine"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(
    demo_store: DemoStore, options: dict[str, Any], line: str
) -> None:
    with pytest.raises(HeadgateError, match=line) as error:
        Engine.load(demo_store(4, 8), **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"expert_bits": "2:4"}, {"refine": True}], ids=str)
def test_plain_weights_have_no_fewer_bits(demo_store: DemoStore, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="16 bits"):
        Engine.load(demo_store(16, 16), **options)
    kept = Engine.load(demo_store(16, 16), router_mass=0.9, prefer_cached=0.1)
    assert kept.lossy == ["router-mass 0.9", "prefer-cached 0.1"]


def test_states_that_depend_on_the_cache_are_not_kept(
    demo_store: DemoStore, tmp_path: Path
) -> None:
    store = demo_store(4, 8)
    with pytest.raises(UsageError, match="cannot be kept"):
        PrefixCache(Engine.load(store, refine=True), memory=1 << 20, folder=tmp_path)
    modes: list[dict[str, Any]] = [{}, *PURE.values(), {"prefer_cached": 0.1}]
    found = {identity_of(Engine.load(store, **mode)) for mode in modes}
    assert len(found) == len(modes)


@pytest.mark.parametrize("options", [*PURE.values(), {"refine": True}], ids=str)
def test_traces_are_refused(demo_store: DemoStore, tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        TraceRecorder(tmp_path / "t") as recorder,
        pytest.raises(UsageError, match="a route trace cannot be recorded with"),
    ):
        Engine.load(demo_store(4, 8), recorder=recorder, **options)


def test_bytes_of_a_token_are_those_that_its_experts_want(demo_store: DemoStore) -> None:
    store = demo_store(4, 8)
    plain, half = load(store), load(store, expert_bits="2:4")
    low, high = (half.store.layout.prefix_bytes(bits) for bits in (2, 4))
    full = expert_bytes_per_token(plain)
    for engine in (plain, half):
        answer(engine)
    stats = plain.experts.stats
    assert stats.wanted_bytes == stats.tokens * full == 8 * 8 * high * 11
    assert expert_bytes_per_token(plain) == full
    assert low / high * full < expert_bytes_per_token(half) < 0.8 * full


def test_commands_know_the_knobs(demo_store: DemoStore) -> None:
    done = headgate(
        "run", demo_store(4, 8), "Hi", "--max-tokens", 2, "--expert-bits", "2:4",
        "--top-share", 0.2, "--router-mass", 0.9, "--router-floor", 2, "--prefer-cached", 0.05,
    )  # fmt: skip
    assert done.returncode == 0
    said = "expert-bits 2:4 (stored 4); top-share 0.2; router-mass 0.9, at least 2; prefer-cached"
    assert said in done.stderr
    done = headgate("run", demo_store(4, 8), "Hi", "--expert-bits", "4:2")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
