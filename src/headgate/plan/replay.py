"""A route trace through the engine's own cache classes, at any size and policy.

There are two ways. :func:`repeat` makes the calls that the recorded run made, in its
order: with the run's policy and size it gives exactly its hits, misses and evictions.
:func:`simulate` has no calls to go by, since with another cache other experts are missing;
it makes those that the expert stream makes when nothing is read ahead and reads complete
one by one in the order in which they were asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from headgate.errors import UsageError
from headgate.measure.trace import ADVANCE, AHEAD, FORGET, HIT, HITS, PLACE, UNPIN
from headgate.plan.trace_file import Row, Trace
from headgate.stream import Policy, Residency, make_policy
from headgate.stream.experts import MOST_READING
from headgate.stream.policies import Belady, Key

BELADY = "belady"


@dataclass(frozen=True)
class Counts:
    """What became of the requests.

    Attributes:
        hits, misses: by row of the trace.
        evictions: in all.
    """

    hits: list[int]
    misses: list[int]
    evictions: int

    def rate(self, rows: Sequence[bool] | None = None) -> float:
        """Share of the experts asked for that were in memory, in all rows or those
        chosen."""
        chosen = range(len(self.hits)) if rows is None else np.flatnonzero(rows).tolist()
        hits, misses = (sum(values[i] for i in chosen) for values in (self.hits, self.misses))
        return hits / (hits + misses) if hits + misses else 0.0


@dataclass(frozen=True)
class Demand:
    """The experts of a request in ascending order, and how many tokens use each."""

    layer: int
    tokens: int
    experts: list[tuple[Key, int]]


def demands(rows: Iterable[Row]) -> list[Demand]:
    """What is asked for, whatever cache it meets."""
    found = []
    for row in rows:
        ids, uses = np.unique(row.experts, return_counts=True)
        keys = [(row.layer, expert) for expert in ids.tolist()]
        found.append(Demand(row.layer, row.tokens, list(zip(keys, uses.tolist(), strict=True))))
    return found


def policy_for(name: str, slots: int, wanted: Sequence[Demand]) -> Policy:
    """A policy by name; ``belady`` is told the future.

    Raises:
        UsageError: there is none of this name.
    """
    if name == BELADY:
        return Belady(key for demand in wanted for key, _ in demand.experts)
    return make_policy(name, slots)


def simulate(wanted: Sequence[Demand], slots: int, policy: Policy, cached: bool = True) -> Counts:
    """Counts of a cache of ``slots`` experts.

    Args:
        cached: False forgets every expert once it has been used.
    """
    cache = Residency(slots, policy)
    hits, misses = [], []
    for demand in wanted:
        if demand.layer == 0:
            cache.advance(demand.tokens)
        waiting = deque((key, uses) for key, uses in demand.experts if cache.hit(key, uses) is None)
        misses.append(len(waiting))
        hits.append(len(demand.experts) - len(waiting))
        _read(cache, demand, waiting)
        if not cached:
            for key, _ in demand.experts:
                if key in cache:
                    cache.forget(key)
    return Counts(hits, misses, cache.evictions)


def _read(cache: Residency, demand: Demand, waiting: deque[tuple[Key, int]]) -> None:
    missing = {key for key, _ in waiting}
    reading: deque[Key] = deque()
    _place(cache, waiting, reading)
    for key, _ in demand.experts:  # found in memory: multiplied while the rest is read
        if key not in missing:
            cache.unpin(key)
    while reading or waiting:
        _place(cache, waiting, reading)
        cache.unpin(reading.popleft())
        _place(cache, waiting, reading)


def _place(cache: Residency, waiting: deque[tuple[Key, int]], reading: deque[Key]) -> None:
    while waiting and len(reading) < MOST_READING:
        if cache.place(*waiting[0]) is None:
            return
        reading.append(waiting.popleft()[0])


def repeat(trace: Trace) -> Counts:
    """Counts of the recorded run's own calls, with its policy and size.

    Raises:
        UsageError: the calls cannot be made: another version of the policy evicts
            otherwise.
    """
    cache = _Repeated(trace)
    hits, misses = [], []
    try:
        for row in trace.rows():
            found = cache.row(row)
            hits.append(found[0])
            misses.append(found[1])
    except KeyError as error:
        raise UsageError(
            f"the trace does not repeat: {error}; it was recorded by another version"
        ) from None
    return Counts(hits, misses, cache.residency.evictions)


class _Repeated:
    """The residency of a recorded run, as its calls are made again."""

    def __init__(self, trace: Trace) -> None:
        slots = trace.about["slots"]
        self.residency = Residency(slots, make_policy(trace.about["policy"], slots))
        self._reading: set[Key] = set()  # placed and not yet multiplied

    def row(self, row: Row) -> tuple[int, int]:
        """(hits, misses) of one request."""
        ids, counts = np.unique(row.experts, return_counts=True)
        uses = {(row.layer, e): n for e, n in zip(ids.tolist(), counts.tolist(), strict=True)}
        hits = misses = 0
        for call in row.calls.tolist():
            kind, key = call >> 28, (call >> 16 & 0xFFF, call & 0xFFFF)
            if kind == ADVANCE:
                self.residency.advance(call & 0xFFFFFFF)
            elif kind in (HITS, HIT):
                looked_up = list(uses) if kind == HITS else [key]
                found = [self._hit(each, uses[each]) for each in looked_up]
                hits += sum(found)
                misses += len(found) - sum(found)
            else:
                self._move(kind, key, uses)
        return hits, misses

    def _hit(self, key: Key, uses: int) -> bool:
        under_way = key in self._reading
        return self.residency.hit(key, uses) is not None and not under_way

    def _move(self, kind: int, key: Key, uses: dict[Key, int]) -> None:
        if kind in (PLACE, AHEAD):
            if key in self.residency:
                raise KeyError(f"layer {key[0]}, expert {key[1]} is there already")
            if self.residency.place(key, uses[key] if kind == PLACE else 0) is None:
                raise KeyError(f"no room for layer {key[0]}, expert {key[1]}")
            self._reading.add(key)
            return
        self._reading.discard(key)
        if kind == UNPIN:
            self.residency.unpin(key)
        elif kind == FORGET:
            self.residency.forget(key)
