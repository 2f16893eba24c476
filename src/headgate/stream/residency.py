"""Which experts are in memory, and which one makes room for another.

Nothing here reads, allocates or makes a system call, so a simulator can drive the
same classes as the engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Protocol

#: an expert: (index of its layer's file, number)
Key = tuple[int, int]


class Policy(Protocol):
    """Decides what is evicted. Is told of every resident expert and every use."""

    def admit(self, key: Key) -> None:
        """``key`` has become resident."""

    def touch(self, key: Key) -> None:
        """``key``, which is resident, is used again."""

    def remove(self, key: Key) -> None:
        """``key`` is no longer resident."""

    def victim(self, pinned: Collection[Key]) -> Key | None:
        """The resident expert to evict next, none of ``pinned``; None if there is none."""


class LRU:
    """Least recently used."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key) -> None:
        self._order[key] = None

    def touch(self, key: Key) -> None:
        self._order.move_to_end(key)

    def remove(self, key: Key) -> None:
        del self._order[key]

    def victim(self, pinned: Collection[Key]) -> Key | None:
        return next((key for key in self._order if key not in pinned), None)


class Residency:
    """A fixed number of slots, each of which holds one expert or nothing.

    An expert is pinned while it is being read or multiplied; pinned experts are
    never evicted.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        self.slots = slots
        self.evictions = 0
        self._policy = policy
        self._slot_of: dict[Key, int] = {}
        self._free = list(range(slots - 1, -1, -1))
        self._pinned: set[Key] = set()

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, key: Key) -> bool:
        return key in self._slot_of

    def hit(self, key: Key) -> int | None:
        """Pin ``key`` and return its slot if it is resident."""
        slot = self._slot_of.get(key)
        if slot is not None:
            self._policy.touch(key)
            self._pinned.add(key)
        return slot

    def place(self, key: Key) -> int | None:
        """Give ``key``, which is not resident, a slot, evicting another expert if
        need be, and pin it. None if every slot is pinned."""
        if not self._free:
            victim = self._policy.victim(self._pinned)
            if victim is None:
                return None
            self.forget(victim)
            self.evictions += 1
        slot = self._free.pop()
        self._slot_of[key] = slot
        self._pinned.add(key)
        self._policy.admit(key)
        return slot

    def unpin(self, key: Key) -> None:
        """``key`` may be evicted again."""
        self._pinned.discard(key)

    def forget(self, key: Key) -> None:
        """``key`` is not resident any more: evicted, or its read has failed."""
        self._free.append(self._slot_of.pop(key))
        self._policy.remove(key)
        self._pinned.discard(key)
