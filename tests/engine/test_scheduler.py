"""Many requests at once, against each alone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headgate.engine import (
    Engine,
    Event,
    Failed,
    Finished,
    PromptProgress,
    Queued,
    Scheduler,
    Ticket,
    Tokens,
    TurnFigures,
    TurnOptions,
)
from headgate.engine.budget import resident_bytes
from headgate.engine.turn import token_step
from headgate.errors import (
    Busy,
    DamagedStore,
    HeadgateError,
    PromptTooLong,
    ShuttingDown,
    UsageError,
)
from headgate.stream import ExpertStream
from tests.conftest import DemoStore
from tests.engine.test_batch import experts_of, tokens
from tests.stream.test_experts import flip

FREE = frozenset[int]()  # no token ends the answer


@pytest.fixture(scope="module")
def engine(demo_store: DemoStore) -> Engine:
    engine = Engine.load(demo_store(4, 8), sequences=3, context=600)
    # Few enough slots that sequences take experts away from each other.
    engine.experts = ExpertStream(engine.store, engine.ops, 30, 4)
    return engine


@pytest.fixture
def scheduler(engine: Engine) -> Iterator[Scheduler]:
    with Scheduler(engine) as scheduler:
        yield scheduler


def options(count: int, **more: Any) -> TurnOptions:
    return TurnOptions(count, stop_ids=FREE, **more)


def answer(ticket: Ticket) -> list[int]:
    return [step.token for event in ticket if isinstance(event, Tokens) for step in event.steps]


def figures(ticket: Ticket) -> TurnFigures:
    *_, last = ticket
    assert isinstance(last, Finished), last
    return last.figures


def alone(engine: Engine, prompt: Sequence[int], count: int) -> list[int]:
    return list(engine.new_session().generate(prompt, count, stop=FREE))


Log = list[tuple[str, Event]]


def record(log: Log, name: str, ticket: Ticket) -> None:
    """Append to ``log`` what the scheduler reports."""
    ticket.on_event(lambda event: log.append((name, event)))


class Hold:
    """Keeps the scheduler's thread from going on until released."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        if not isinstance(event, Queued):
            self.reached.set()
            self.released.wait()


def held(scheduler: Scheduler, log: Log | None = None) -> tuple[Hold, Ticket]:
    """A request that holds the scheduler up."""
    hold = Hold()
    ticket = scheduler.submit([1, 2, 3], options(300))
    if log is not None:
        record(log, "held", ticket)
    ticket.on_event(hold)
    hold.reached.wait()
    return hold, ticket


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 200),  # tokens of the prompt
        st.integers(1, 12),  # of the answer
        st.integers(0, 5),  # which prompt
        st.none() | st.integers(1, 6),  # cancelled at this token
    ),
    min_size=1,
    max_size=7,
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(requests=REQUESTS)
def test_completed_answers_are_those_of_each_alone(
    engine: Engine, requests: list[tuple[int, int, int, int | None]]
) -> None:
    tickets = []
    with Scheduler(engine) as scheduler:
        for length, count, seed, cancelled in requests:
            ticket = scheduler.submit(tokens(length, seed), options(count))
            if cancelled is not None:
                cancel_at(ticket, cancelled)
            tickets.append(ticket)
        found = [(answer(ticket), figures(ticket)) for ticket in tickets]
    for (length, count, seed, cancelled), (got, took) in zip(requests, found, strict=True):
        expected = alone(engine, tokens(length, seed), count)
        ended = count if cancelled is None else min(count, cancelled)
        assert got == expected[:ended]
        assert took.generated_tokens == ended
        early = cancelled is not None and cancelled < count
        assert took.finish_reason == ("cancelled" if early else "length")
    assert len(engine.states) <= engine.sequences


def cancel_at(ticket: Ticket, count: int) -> None:
    seen = 0

    def watch(event: Event) -> None:
        nonlocal seen
        if isinstance(event, Tokens):
            seen += len(event.steps)
            if seen == count:
                ticket.cancel()

    ticket.on_event(watch)


def test_long_prompt_stalls_others_by_one_chunk_at_most(
    demo_store: DemoStore,
) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=2, prompt_chunk=64)
    with Scheduler(engine) as scheduler:
        log: Log = []
        hold, first = held(scheduler, log)
        long = scheduler.submit(tokens(500, 1), options(1))
        record(log, "long", long)
        hold.released.set()
        figures(long)
        first.cancel()
        figures(first)
    chunks = [i for i, (name, e) in enumerate(log) if name == "long" and is_chunk(e)]
    assert len(chunks) == 8  # of 64 tokens
    for a, b in pairwise(chunks):
        assert any(name == "held" and isinstance(e, Tokens) for name, e in log[a:b])


def is_chunk(event: Event) -> bool:
    return isinstance(event, PromptProgress) and event.done > event.cached


def test_prompts_take_turns(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=3, prompt_chunk=64)
    with Scheduler(engine) as scheduler:
        hold, first = held(scheduler)
        tickets = {name: scheduler.submit(tokens(256, 1), options(1)) for name in "ab"}
        log: Log = []
        for name, ticket in tickets.items():
            record(log, name, ticket)
        first.cancel()
        hold.released.set()
        for ticket in tickets.values():
            figures(ticket)
    assert "".join(name for name, e in log if is_chunk(e)) == "abababab"


def test_short_prompts_share_a_chunk(engine: Engine, scheduler: Scheduler) -> None:
    hold, first = held(scheduler)
    tickets = [scheduler.submit(tokens(20, n), options(1)) for n in (1, 2)]
    layers = engine.experts.stats.layers
    first.cancel()
    hold.released.set()
    assert [answer(t) for t in tickets] == [alone(engine, tokens(20, n), 1) for n in (1, 2)]
    # One pass for both, one each alone.
    assert engine.experts.stats.layers - layers == 3 * len(engine.store.manifest.layers)


def test_queue_has_an_end_and_tells_positions(scheduler: Scheduler) -> None:
    scheduler.queue = 4
    hold, first = held(scheduler)
    waiting = [scheduler.submit([5, n], options(2)) for n in range(4)]
    with pytest.raises(Busy, match="4 requests are waiting"):
        scheduler.submit([5], options(2))
    waiting[2].cancel()
    hold.released.set()
    first.cancel()
    took = [figures(ticket) for ticket in waiting]
    assert [t.finish_reason for t in took] == ["length", "length", "cancelled", "length"]
    assert took[2].generated_tokens == 0
    positions = [e.position for e in waiting[3] if isinstance(e, Queued)]
    assert positions[0] == 3 and positions == sorted(positions, reverse=True)


def test_cancel_takes_effect_within_one_token(scheduler: Scheduler) -> None:
    ticket = scheduler.submit([1, 2], options(200))
    cancel_at(ticket, 3)
    assert len(answer(ticket)) == 3
    assert figures(ticket).finish_reason == "cancelled" and ticket.done


def test_close_finishes_what_there_is(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    tickets = [scheduler.submit([1, n], options(4)) for n in range(5)]
    scheduler.close()
    assert [figures(t).finish_reason for t in tickets] == ["length"] * 5
    with pytest.raises(ShuttingDown):
        scheduler.submit([1], options(1))


def test_close_with_no_time_cancels(engine: Engine) -> None:
    scheduler = Scheduler(engine)
    hold, first = held(scheduler)
    second = scheduler.submit([4], options(4))
    closer = threading.Thread(target=scheduler.close, args=(0,))
    closer.start()
    hold.released.set()
    closer.join()
    assert figures(first).finish_reason == figures(second).finish_reason == "cancelled"


def test_what_cannot_be_processed_is_refused_at_once(engine: Engine, scheduler: Scheduler) -> None:
    with pytest.raises(PromptTooLong):
        scheduler.submit([1] * 601)
    for prompt in ([], [-1], [engine.config.vocab_size]):
        with pytest.raises(UsageError):
            scheduler.submit(prompt)
    with pytest.raises(UsageError, match="prompt_logprobs"):
        scheduler.submit([1], prompt_logprobs=-1)
    with pytest.raises(UsageError, match=r"sequences is 4, the engine was loaded for 1\.\.3"):
        Scheduler(engine, sequences=4)


class Broken:
    """A constraint that fails at its second token."""

    finished = False

    def __init__(self) -> None:
        self.calls = 0

    def mask(self) -> None:
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError("of its own")

    def forced(self) -> list[int]:
        return []

    def accept(self, token: int) -> None:
        pass


def test_failure_of_one_leaves_the_others_alone(engine: Engine, scheduler: Scheduler) -> None:
    prompts = [tokens(9, n) for n in range(3)]
    constraints = [None, Broken(), None]
    tickets = [
        scheduler.submit(prompt, options(8, constraint=constraint))
        for prompt, constraint in zip(prompts, constraints, strict=True)
    ]
    for n in (0, 2):
        assert answer(tickets[n]) == alone_later(scheduler, engine, prompts[n], 8)
    *_, last = tickets[1]
    assert isinstance(last, Failed) and isinstance(last.error, HeadgateError)
    assert "ZeroDivisionError: of its own" in str(last.error)


def alone_later(scheduler: Scheduler, engine: Engine, prompt: list[int], count: int) -> list[int]:
    scheduler.close()
    return alone(engine, prompt, count)


def test_damage_fails_the_request_that_meets_it(demo_store: DemoStore, tmp_path: Path) -> None:
    shutil.copytree(demo_store(4, 8), tmp_path / "store")
    prompts = [tokens(2, n) for n in (21, 22, 23)]
    whole = Engine.load(tmp_path / "store")
    expected = [alone(whole, ids, 3) for ids in prompts]
    needs = [
        experts_of(whole, ids + more[:-1]) for ids, more in zip(prompts, expected, strict=True)
    ]
    layer, expert = min(needs[1] - needs[0] - needs[2])
    flip(whole.store.expert_path(layer), expert * whole.store.layout.stride + 99)
    with Scheduler(Engine.load(tmp_path / "store", sequences=3)) as scheduler:
        for _ in range(2):  # the thread survives
            tickets = [scheduler.submit(ids, options(3)) for ids in prompts]
            assert answer(tickets[0]) == expected[0] and answer(tickets[2]) == expected[2]
            *_, last = tickets[1]
            assert isinstance(last, Failed) and isinstance(last.error, DamagedStore)
        assert scheduler.state()["failed"] == 2


def test_error_of_a_whole_step_does_not_end_the_thread(
    engine: Engine, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "hidden", broken)
        *_, last = scheduler.submit([1, 2], options(2))
        assert isinstance(last, Failed) and "MemoryError" in str(last.error)
    assert len(answer(scheduler.submit([1, 2], options(2)))) == 2


def test_listener_that_raises_cancels_its_request(scheduler: Scheduler) -> None:
    ticket = scheduler.submit([1, 2], options(200))

    def raising(event: Event) -> None:
        if isinstance(event, Tokens):
            raise ValueError("nobody is there")

    ticket.on_event(raising)
    assert figures(ticket).finish_reason == "cancelled"
    assert len(answer(scheduler.submit([3], options(2)))) == 2


def test_prompt_logprobs_are_those_of_the_model(engine: Engine) -> None:
    prompt = tokens(150, 3)
    expected = engine.new_session().append(prompt, all_logits=True)
    with Scheduler(engine) as scheduler:
        took = figures(scheduler.submit(prompt, options(0), prompt_logprobs=2))
    assert took.prompt_logprobs is not None and took.finish_reason == "length"
    first, *rest = took.prompt_logprobs
    assert (first.token, first.logprob, first.top) == (prompt[0], None, ())
    assert rest == [
        token_step(token, logits, 2) for token, logits in zip(prompt[1:], expected, strict=False)
    ]


def test_logprobs_come_with_every_token(scheduler: Scheduler) -> None:
    ticket = scheduler.submit([1, 2, 3], options(4, top_logprobs=3))
    steps = [step for event in ticket if isinstance(event, Tokens) for step in event.steps]
    assert [len(step.top) for step in steps] == [3] * 4
    assert all(step.top[0] == (step.token, step.logprob) for step in steps)  # greedy


def test_shares_add_up_to_what_was_read(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(4, 8), sequences=3)
    with Scheduler(engine) as scheduler:
        tickets = [scheduler.submit(tokens(30, n), options(6)) for n in range(3)]
        took = [figures(ticket) for ticket in tickets]
        state = scheduler.state()
    stats = engine.experts.stats
    assert sum(t.bytes_read for t in took) == pytest.approx(stats.bytes_read)
    assert sum(t.misses for t in took) == pytest.approx(stats.misses)
    assert (state["finished"], state["tokens"], state["prompt_tokens"]) == (3, 18, 90)
    assert int(scheduler.resident().sum()) == state["experts_resident"] > 0


def test_budget_reserves_state_for_every_sequence(demo_store: DemoStore) -> None:
    memory = resident_bytes() + (1 << 30)  # other tests have made this process large
    engines = [Engine.load(demo_store(4, 8), memory=memory, sequences=n) for n in (1, 4)]
    one, four = (engine.budget for engine in engines)
    assert four.state == 4 * one.state and four.total <= memory
    kept = Engine.load(demo_store(4, 8), memory=memory, prefix_bytes=100 << 20).budget
    assert kept.prefixes == 100 << 20 and kept.total <= memory
    for bad in ({"sequences": 0}, {"prefix_bytes": -1}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            Engine.load(demo_store(4, 8), **bad)


def test_shapes_of_resident(engine: Engine, scheduler: Scheduler) -> None:
    manifest = engine.store.manifest
    found = scheduler.resident()
    assert found.shape == (len(manifest.layers), manifest.num_experts)
    assert found.dtype == np.bool_
