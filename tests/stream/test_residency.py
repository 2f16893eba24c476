"""Which experts stay in memory."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from headgate.stream import LRU, Residency

keys = st.tuples(st.integers(0, 2), st.integers(0, 5))


@given(slots=st.integers(1, 8), uses=st.lists(keys, max_size=200))
def test_lru_keeps_the_most_recent(slots: int, uses: list[tuple[int, int]]) -> None:
    residency, expected, evictions = (
        Residency(slots, LRU()),
        OrderedDict[tuple[int, int], None](),
        0,
    )
    for key in uses:
        hit = residency.hit(key) is not None
        assert hit == (key in expected)
        if not hit:
            assert residency.place(key) is not None
            if len(expected) == slots:
                expected.popitem(last=False)
                evictions += 1
            expected[key] = None
        expected.move_to_end(key)
        residency.unpin(key)
    assert len(residency) == len(expected) and residency.evictions == evictions


@given(slots=st.integers(1, 6), uses=st.lists(keys, max_size=100))
def test_no_slot_serves_two_experts(slots: int, uses: list[tuple[int, int]]) -> None:
    residency = Residency(slots, LRU())
    held: dict[tuple[int, int], int] = {}
    for key in uses:
        slot = residency.hit(key)
        if slot is None:
            slot = residency.place(key)
            assert slot is not None
            held = {k: s for k, s in held.items() if k in residency and k != key}
        assert slot not in {s for k, s in held.items() if k != key} and 0 <= slot < slots
        held[key] = slot
        residency.unpin(key)


def test_pinned_experts_are_not_evicted() -> None:
    residency = Residency(2, LRU())
    assert residency.place((0, 0)) is not None and residency.place((0, 1)) is not None
    assert residency.place((0, 2)) is None
    residency.unpin((0, 1))
    assert residency.place((0, 2)) is not None
    assert (0, 0) in residency and (0, 1) not in residency


def test_forgotten_expert_frees_its_slot() -> None:
    residency = Residency(1, LRU())
    slot = residency.place((0, 0))
    residency.forget((0, 0))
    assert (0, 0) not in residency and residency.place((1, 1)) == slot
