"""Eviction policies against naive models of them, and against the best there can be."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headgate.errors import UsageError
from headgate.stream import POLICIES, Policy, Residency, make_policy
from headgate.stream.policies import S3FIFO, Belady, DecayedLFU, Key, SegmentedLRU

#: layers of a step -> experts of the layer; some layers need nothing
Steps = list[list[list[int]]]

LAYERS = 3
EXPERTS = 5
keys = st.tuples(st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))
layer_experts = st.lists(st.integers(0, EXPERTS - 1), max_size=3, unique=True)
steps = st.lists(st.lists(layer_experts, min_size=LAYERS, max_size=LAYERS), max_size=40)
slot_counts = st.integers(3, 9)


def requests(trace: Steps) -> list[list[Key]]:
    return [
        [(layer, expert) for expert in experts]
        for step in trace
        for layer, experts in enumerate(step)
    ]


def use(residency: Residency, keys: Sequence[Key], uses: float = 1) -> int:
    """One layer of one token, as the stream does it."""
    missing = [key for key in keys if residency.hit(key, uses) is None]
    for key in missing:
        assert residency.place(key, uses) is not None
    for key in keys:
        residency.unpin(key)
    return len(keys) - len(missing)


def replay(trace: Steps, slots: int, policy: Policy) -> int:
    residency, hits = Residency(slots, policy), 0
    for step in trace:
        residency.advance()
        hits += sum(use(residency, keys) for keys in requests([step]))
    return hits


def uniform(tokens: int, layers: int, experts: int, k: int) -> Steps:
    rng = np.random.default_rng(0)
    chosen: Steps = np.argsort(rng.random((tokens, layers, experts)))[..., :k].tolist()
    return chosen


class Checked(Policy):
    """Passes on to a policy and looks at what it returns."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.resident: set[Key] = set()

    def advance(self, tokens: int) -> None:
        self.policy.advance(tokens)

    def admit(self, key: Key, uses: float = 1) -> None:
        self.resident.add(key)
        self.policy.admit(key, uses)

    def touch(self, key: Key, uses: float = 1) -> None:
        self.policy.touch(key, uses)

    def remove(self, key: Key) -> None:
        self.resident.remove(key)
        self.policy.remove(key)

    def victim(self, pinned: Collection[Key]) -> Key | None:
        key = self.policy.victim(pinned)
        if key is None:
            assert self.resident <= set(pinned)
        else:
            assert key in self.resident and key not in pinned
        return key


# Every policy -------------------------------------------------------------------


@pytest.mark.parametrize("name", [*POLICIES, "belady"])
@given(
    slots=st.integers(0, 6),
    actions=st.lists(st.tuples(st.sampled_from("uuuufpva"), keys, st.integers(0, 9)), max_size=120),
)
def test_victim_is_resident_and_not_pinned(
    name: str, slots: int, actions: list[tuple[str, Key, int]]
) -> None:
    """Uses, failed reads, pins that last, and questions without consequences."""
    future = [key for kind, key, _ in actions if kind in "up"]
    policy = Checked(Belady(future) if name == "belady" else make_policy(name, slots))
    residency = Residency(slots, policy)
    pinned: set[Key] = set()
    for kind, key, count in actions:
        if kind in "up":
            if residency.hit(key, count) is None and residency.place(key, count) is None:
                assert len(pinned) == slots
                if name == "belady":  # the future was to be another
                    return
                continue
            if kind == "p":
                pinned.add(key)
            elif key not in pinned:
                residency.unpin(key)
        elif kind == "f" and key in residency:
            residency.forget(key)
            pinned.discard(key)
        elif kind == "v":
            policy.victim(pinned)
            policy.victim(policy.resident)
        elif kind == "a":
            residency.advance(count + 1)
        assert policy.resident == {key for key in product_keys() if key in residency}
        assert len(residency) <= slots and all(key in residency for key in pinned)


def product_keys() -> list[Key]:
    return list(product(range(LAYERS), range(EXPERTS)))


@given(slots=slot_counts, trace=steps)
def test_no_policy_beats_belady(slots: int, trace: Steps) -> None:
    future = [key for keys in requests(trace) for key in keys]
    bound = replay(trace, slots, Checked(Belady(future)))
    for name in POLICIES:
        assert replay(trace, slots, Checked(make_policy(name, slots))) <= bound


@pytest.mark.parametrize("name", POLICIES)
def test_cache_of_everything_misses_each_expert_once(name: str) -> None:
    trace = uniform(60, LAYERS, EXPERTS, 2)
    distinct = {key for keys in requests(trace) for key in keys}
    slots = LAYERS * EXPERTS
    hits = replay(trace, slots, make_policy(name, slots))
    assert hits == 60 * LAYERS * 2 - len(distinct)


def test_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"'fifo'.*lfu, lru, s3fifo, slru"):
        make_policy("fifo", 4)


# Below one token cycle ------------------------------------------------------------


def test_below_a_token_cycle_lru_never_hits_and_lfu_keeps_its_share() -> None:
    layers, experts, k = 8, 32, 4
    trace = uniform(600, layers, experts, k)
    uses = 600 * layers * k
    slots = layers * k * 3 // 4
    assert replay(trace, slots, make_policy("lru", slots)) == 0
    # Every resident expert is as good as any other; those being used are no choice.
    share = replay(trace, slots, make_policy("lfu", slots)) / uses
    assert share > 0.8 * (slots - k) / (layers * experts)


def test_below_a_token_cycle_lfu_keeps_what_every_token_uses() -> None:
    # Per layer, expert 0 always and three others in turn; room for half of a cycle.
    trace: Steps = [
        [[0, *(1 + (3 * token + i) % 30 for i in range(3))] for _ in range(8)]
        for token in range(200)
    ]
    assert replay(trace, 16, make_policy("lru", 16)) == 0
    assert replay(trace, 16, make_policy("lfu", 16)) > 0.95 * 200 * 8


# Belady ---------------------------------------------------------------------------


@given(
    slots=st.integers(2, 4),
    trace=st.lists(st.lists(st.integers(0, 5), max_size=2, unique=True), max_size=9),
)
def test_belady_is_the_optimum_of_all_choices(slots: int, trace: list[list[int]]) -> None:
    batches = tuple(frozenset(batch) for batch in trace)

    @cache
    def best(i: int, resident: frozenset[int]) -> int:
        if i == len(batches):
            return 0
        hits = len(batches[i] & resident)
        after = resident | batches[i]
        options = {after}
        while max(map(len, options)) > slots:
            options = {kept - {key} for kept in options for key in kept - batches[i]}
        return hits + max(best(i + 1, kept) for kept in options)

    found = replay(
        [[batch] for batch in trace], slots, Belady((0, key) for batch in trace for key in batch)
    )
    assert found == best(0, frozenset())


# Segmented LRU -----------------------------------------------------------------------


@given(slots=slot_counts, uses=st.lists(keys, max_size=150))
def test_segmented_lru_equals_two_plain_lists(slots: int, uses: list[Key]) -> None:
    residency = Residency(slots, SegmentedLRU(slots))
    probation: list[Key] = []  # the oldest first
    protected: list[Key] = []
    for key in uses:
        assert (key in probation + protected) == (use(residency, [key]) == 1)
        if key in protected:
            protected.remove(key)
            protected.append(key)
        elif key in probation:
            probation.remove(key)
            protected.append(key)
            if len(protected) > int(slots * 0.8):
                probation.append(protected.pop(0))
        else:
            if len(probation + protected) == slots:
                (probation or protected).pop(0)
            probation.append(key)


# S3-FIFO -----------------------------------------------------------------------------


class NaiveS3FIFO:
    """The algorithm of the paper on lists, one request at a time, without pins."""

    def __init__(self, slots: int) -> None:
        self.slots, self.main_slots = slots, slots - max(1, slots // 10)
        self.small: list[Key] = []
        self.main: list[Key] = []
        self.ghost: list[Key] = []
        self.used: Counter[Key] = Counter()

    def request(self, key: Key) -> bool:
        if key in self.small + self.main:
            self.used[key] = min(3, self.used[key] + 1)
            return True
        if len(self.small + self.main) == self.slots:
            self.evict()
        self.used[key] = 0
        if key in self.ghost:
            self.ghost.remove(key)
            self.main.append(key)
        else:
            self.small.append(key)
        return False

    def evict(self) -> None:
        while len(self.main) <= self.main_slots and self.small:
            key = self.small.pop(0)
            if self.used[key] <= 1:
                self.ghost.append(key)
                del self.ghost[: max(0, len(self.ghost) - self.main_slots)]
                return
            self.main.append(key)
            self.used[key] = 0
        while self.used[self.main[0]]:
            self.used[self.main[0]] -= 1
            self.main.append(self.main.pop(0))
        self.main.pop(0)


@given(slots=slot_counts, uses=st.lists(keys, max_size=200))
def test_s3fifo_equals_the_papers_algorithm(slots: int, uses: list[Key]) -> None:
    residency, naive = Residency(slots, S3FIFO(slots)), NaiveS3FIFO(slots)
    for key in uses:
        assert (use(residency, [key]) == 1) == naive.request(key)
    for key in product_keys():
        assert (key in residency) == (key in naive.small + naive.main)


@given(slots=slot_counts, trace=steps)
def test_s3fifo_queues_are_disjoint_and_bounded(slots: int, trace: Steps) -> None:
    policy = S3FIFO(slots)
    residency = Residency(slots, policy)
    for keys in requests(trace):
        use(residency, keys)
        small, main, ghost = set(policy._small), set(policy._main), set(policy._ghost)
        assert not small & main and not small & ghost and not main & ghost
        assert len(small | main) == len(residency) == len(policy._used)
        assert all(key in residency for key in small | main)
        assert len(ghost) <= policy._main_slots
        assert all(0 <= used <= S3FIFO.MOST for used in policy._used.values())


# Decayed LFU ---------------------------------------------------------------------------


@given(
    slots=slot_counts,
    trace=st.lists(
        st.tuples(
            st.lists(layer_experts, min_size=LAYERS, max_size=LAYERS),
            st.sampled_from([1, 1, 1, 7, 300]),
        ),
        max_size=40,
    ),
)
def test_lfu_evicts_the_least_of_counts_made_anew(
    slots: int, trace: list[tuple[list[list[int]], int]]
) -> None:
    history: dict[Key, list[tuple[float, float]]] = {}
    now, recent = 0.0, 0.0

    def count(key: Key) -> float:
        return sum(uses * 2 ** (then - now) for then, uses in history[key])

    class Recounted(Checked):
        def admit(self, key: Key, uses: float = 1) -> None:
            history.setdefault(key, []).append((now, uses))
            super().admit(key, uses)

        def touch(self, key: Key, uses: float = 1) -> None:
            history[key].append((now, uses))
            super().touch(key, uses)

        def victim(self, pinned: Collection[Key]) -> Key | None:
            key = super().victim(pinned)
            assert key is not None
            least = min(count(other) for other in self.resident - set(pinned))
            assert math.isclose(count(key), least, rel_tol=1e-9, abs_tol=1e-300)
            return key

    residency = Residency(slots, Recounted(DecayedLFU(slots)))
    for step, tokens in trace:
        residency.advance(tokens)
        now += tokens * min(1 / DecayedLFU.SHORTEST, recent / (DecayedLFU.RESIDENCE * slots))
        recent = float(sum(map(len, step)))  # uses per token
        for keys in requests([step]):
            use(residency, keys, tokens)


def test_lfu_forgets_what_is_no_longer_used() -> None:
    residency = Residency(4, DecayedLFU(4))
    for token in range(400):
        residency.advance()
        use(residency, [(0, 0), (0, 1)] if token < 300 else [(0, 2), (0, 3)])
    residency.advance()
    use(residency, [(0, 4), (0, 5)])  # in place of those used 300 times
    assert (0, 2) in residency and (0, 3) in residency


def test_after_a_prompt_lfu_holds_what_it_used_most_in_every_layer() -> None:
    layers, experts, slots = 4, 16, 16
    held = {}
    for name in ("lru", "lfu"):
        residency = Residency(slots, make_policy(name, slots))
        residency.advance(512)
        for layer in range(layers):  # each expert once, used by 1, 2, ... tokens
            for expert in range(experts):
                use(residency, [(layer, expert)], 1 + expert)
        held[name] = {key for key in product(range(layers), range(experts)) if key in residency}
    assert held["lru"] == {(layers - 1, expert) for expert in range(experts)}
    often = {(layer, expert) for layer in range(layers) for expert in range(experts - 4, experts)}
    assert len(held["lfu"] & often) >= slots - 1  # one slot is the way through


def test_what_was_read_ahead_in_vain_is_the_first_to_go() -> None:
    residency = Residency(3, DecayedLFU(3))
    use(residency, [(0, 0), (0, 1)])
    use(residency, [(1, 0)], uses=0)
    use(residency, [(1, 1)])
    assert (1, 0) not in residency and (1, 1) in residency


@given(slots=slot_counts, trace=steps)
def test_lru_equals_an_ordered_dictionary(slots: int, trace: Steps) -> None:
    residency = Residency(slots, make_policy("lru", slots))
    order: OrderedDict[Key, None] = OrderedDict()
    for keys in requests(trace):
        expected = [key for key in keys if key in order]
        assert use(residency, keys) == len(expected)
        for key in [*expected, *(key for key in keys if key not in expected)]:
            order[key] = None
            order.move_to_end(key)
        while len(order) > slots:
            order.popitem(last=False)
