"""What is evicted: policies for :class:`headgate.stream.residency.Residency`.

A policy sees experts come, go and be used; it knows nothing of memory or drives. All
take constant or logarithmic time per call, whatever the number of experts.

The number of experts of a model is small and known, so a policy can afford to remember
those that are not resident. That decides below one token cycle (experts per token x
layers): there every expert that LRU keeps is evicted just before it would be used, while
one that remembers keeps the same frequent experts from token to token and lets the others
pass through. ``benchmarks/policies.py`` compares them.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from heapq import heappop, heappush, heapreplace
from itertools import chain
from typing import Protocol

from headgate.errors import UsageError

#: an expert: (index of its layer's file, number)
Key = tuple[int, int]


class Policy(Protocol):
    """Decides what is evicted. Is told of every resident expert and every use.

    ``uses`` is the number of tokens that use an expert at once: 1 when decoding, more in
    a prompt chunk, 0 if it is read ahead. A policy that counts uses then begins to decode
    with the experts that the prompt used most, in every layer; others ignore it.
    """

    def advance(self, tokens: int) -> None:
        """What follows is used by ``tokens`` >= 1 later tokens; once for all layers.
        Nothing to most policies."""
        return

    def admit(self, key: Key, uses: float = 1) -> None:
        """``key`` has become resident."""

    def touch(self, key: Key, uses: float = 1) -> None:
        """``key``, which is resident, is used again."""

    def remove(self, key: Key) -> None:
        """``key`` is no longer resident."""

    def victim(self, pinned: Collection[Key]) -> Key | None:
        """The resident expert to evict next, none of ``pinned``; None if there is none."""


class LRU(Policy):
    """Least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key, uses: float = 1) -> None:
        self._order[key] = None

    def touch(self, key: Key, uses: float = 1) -> None:
        self._order.move_to_end(key)

    def remove(self, key: Key) -> None:
        del self._order[key]

    def victim(self, pinned: Collection[Key]) -> Key | None:
        return _first(self._order, pinned)


class SegmentedLRU(Policy):
    """Two LRU lists (Karedla, Love and Wherry, 1994): an expert is on probation until it
    is used again; the protected hold :data:`PROTECTED` of the slots, and the least
    recent of them goes back on probation."""

    PROTECTED = 0.8

    def __init__(self, slots: int) -> None:
        self._protected_slots = int(slots * self.PROTECTED)
        self._probation: OrderedDict[Key, None] = OrderedDict()
        self._protected: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key, uses: float = 1) -> None:
        self._probation[key] = None

    def touch(self, key: Key, uses: float = 1) -> None:
        if key in self._protected:
            self._protected.move_to_end(key)
            return
        del self._probation[key]
        self._protected[key] = None
        if len(self._protected) > self._protected_slots:
            self._probation[self._protected.popitem(last=False)[0]] = None

    def remove(self, key: Key) -> None:
        del (self._protected if key in self._protected else self._probation)[key]

    def victim(self, pinned: Collection[Key]) -> Key | None:
        return _first(chain(self._probation, self._protected), pinned)


class S3FIFO(Policy):
    """Three first-in-first-out queues (Yang et al., "FIFO queues are all you need for
    cache eviction", SOSP 2023).

    Newcomers enter the small queue, :data:`SMALL` of the slots. At its end those used
    more than once since move to the main queue; the others are evicted and remembered
    in the ghost queue, from where a return leads to the main queue. At the end of the
    main queue, an expert goes round again as often as it was used, :data:`MOST` at most.
    """

    SMALL = 0.1
    MOST = 3

    def __init__(self, slots: int) -> None:
        self._main_slots = slots - max(1, int(slots * self.SMALL))
        self._small: OrderedDict[Key, None] = OrderedDict()
        self._main: OrderedDict[Key, None] = OrderedDict()
        self._ghost: OrderedDict[Key, None] = OrderedDict()
        self._used: dict[Key, int] = {}

    def admit(self, key: Key, uses: float = 1) -> None:
        self._used[key] = 0
        if key in self._ghost:
            del self._ghost[key]
            self._main[key] = None
        else:
            self._small[key] = None

    def touch(self, key: Key, uses: float = 1) -> None:
        used = self._used[key]
        if used < self.MOST:
            self._used[key] = used + 1

    def remove(self, key: Key) -> None:
        del self._used[key]
        if key in self._main:
            del self._main[key]
            return
        del self._small[key]
        self._ghost[key] = None
        if len(self._ghost) > self._main_slots:
            self._ghost.popitem(last=False)

    def victim(self, pinned: Collection[Key]) -> Key | None:
        found = None
        if len(self._main) <= self._main_slots:
            found = self._from_small(pinned)
        if found is None:
            found = self._from_main(pinned)
        return _first(self._small, pinned) if found is None else found

    def _from_small(self, pinned: Collection[Key]) -> Key | None:
        found, promoted = None, []
        for key in self._small:
            if key in pinned:
                continue
            if self._used[key] <= 1:
                found = key
                break
            promoted.append(key)
        for key in promoted:
            del self._small[key]
            self._main[key] = None
            self._used[key] = 0
        return found

    def _from_main(self, pinned: Collection[Key]) -> Key | None:
        # In the last round nothing but pinned experts is passed over.
        for _ in range((self.MOST + 1) * len(self._main)):
            key = next(iter(self._main))
            if key not in pinned:
                if not self._used[key]:
                    return key
                self._used[key] -= 1
            self._main.move_to_end(key)
        return None


class DecayedLFU(Policy):
    """Least frequently used, a use counting half after a while.

    The count of an expert is the sum over its uses of 2^(-age / half-life), whether it
    was resident or not (the CRF of Lee et al., "LRFU", 2001). The half-life is the time
    in which :data:`RESIDENCE` x slots uses are made, since a larger cache has use for a
    longer memory, and at least :data:`SHORTEST` tokens. All uses between two calls of
    :meth:`advance` have the same age, those of a whole prompt chunk as well.

    Instead of all counts falling, what a new use weighs grows: ageing costs nothing, and
    a count never falls. So entries of a heap may be too low, never too high, and it is
    enough to correct those that come to its top.
    """

    RESIDENCE = 1.5
    SHORTEST = 6.0
    #: Half-lives after which nothing is left of a use.
    FORGOTTEN = 64.0
    #: Weight at which all counts are scaled back, within the range of floats.
    HEAVIEST = 2.0**500

    def __init__(self, slots: int) -> None:
        self._lifetime = self.RESIDENCE * max(1, slots)
        self._weight = 1.0  # of a use now
        self._uses, self._tokens = 0.0, 1  # since the weight has grown
        self._count: dict[Key, float] = {}
        self._resident: set[Key] = set()
        # Experts with an entry in the heap, and those which get one when they are no
        # longer pinned: what has just been read often has the least count.
        self._entered: set[Key] = set()
        self._heap: list[tuple[float, Key]] = []
        self._new: list[Key] = []

    def advance(self, tokens: int) -> None:
        uses_per_token = self._uses / self._tokens
        half_lives = tokens * min(1 / self.SHORTEST, uses_per_token / self._lifetime)
        self._weight *= 2 ** min(half_lives, self.FORGOTTEN)
        self._uses, self._tokens = 0.0, tokens
        if self._weight > self.HEAVIEST:
            self._scale(1 / self._weight)
            self._weight = 1.0

    def touch(self, key: Key, uses: float = 1) -> None:
        self._uses += uses
        self._count[key] = self._count.get(key, 0.0) + self._weight * uses

    def admit(self, key: Key, uses: float = 1) -> None:
        self.touch(key, uses)
        self._resident.add(key)
        if key not in self._entered:
            self._entered.add(key)
            self._new.append(key)

    def remove(self, key: Key) -> None:
        self._resident.remove(key)

    def victim(self, pinned: Collection[Key]) -> Key | None:
        self._enter(pinned)
        heap, found, passed = self._heap, None, []
        while heap:
            count, key = heap[0]
            if key not in self._resident:
                heappop(heap)
                self._entered.remove(key)
            elif self._count[key] != count:
                heapreplace(heap, (self._count[key], key))
            elif key in pinned:
                passed.append(heappop(heap))
            else:
                found = key
                break
        for entry in passed:
            heappush(heap, entry)
        return found

    def _enter(self, pinned: Collection[Key]) -> None:
        waiting = []
        for key in self._new:
            if key in pinned:
                waiting.append(key)
            else:
                heappush(self._heap, (self._count[key], key))
        self._new = waiting

    def _scale(self, factor: float) -> None:
        self._count = {key: count * factor for key, count in self._count.items()}
        self._heap = [(count * factor, key) for count, key in self._heap]


class Belady(Policy):
    """The optimum, given all requests in advance (Belady, 1966): evicts what is used
    again last. No policy that must hold what is used has more hits; for replay only.

    Args:
        future: every key that will be admitted or touched, in order. Those of one request
            may come in any order.
    """

    def __init__(self, future: Iterable[Key]) -> None:
        self._requests: dict[Key, deque[int]] = {}
        for time, key in enumerate(future):
            self._requests.setdefault(key, deque()).append(time)
        self._next: dict[Key, float] = {}
        self._heap: list[tuple[float, Key]] = []

    def admit(self, key: Key, uses: float = 1) -> None:
        requests = self._requests[key]
        requests.popleft()
        self._next[key] = time = -requests[0] if requests else -math.inf
        heappush(self._heap, (time, key))

    def touch(self, key: Key, uses: float = 1) -> None:
        self.admit(key)

    def remove(self, key: Key) -> None:
        del self._next[key]

    def victim(self, pinned: Collection[Key]) -> Key | None:
        found, passed = None, []
        while self._heap:
            time, key = self._heap[0]
            if self._next.get(key) != time:
                heappop(self._heap)
            elif key in pinned:
                passed.append(heappop(self._heap))
            else:
                found = key
                break
        for entry in passed:
            heappush(self._heap, entry)
        return found


def _first(keys: Iterable[Key], pinned: Collection[Key]) -> Key | None:
    for key in keys:
        if key not in pinned:
            return key
    return None


#: name -> makes a policy for a number of slots
POLICIES: dict[str, Callable[[int], Policy]] = {
    "lru": lambda slots: LRU(),
    "lfu": DecayedLFU,
    "slru": SegmentedLRU,
    "s3fifo": S3FIFO,
}


def make_policy(name: str, slots: int) -> Policy:
    """A new policy for a cache of ``slots`` experts.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in POLICIES:
        raise UsageError(
            f"there is no cache policy {name!r}; choose from {', '.join(sorted(POLICIES))}"
        )
    return POLICIES[name](slots)
