"""Which experts are in memory.

Nothing here reads, allocates or makes a system call, so a simulator can drive the
same classes as the engine. Which expert makes room for another is decided in
:mod:`headgate.stream.policies`.
"""

from __future__ import annotations

from headgate.stream.policies import LRU, Key, Policy

__all__ = ["LRU", "Key", "Policy", "Residency"]


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

    def advance(self, tokens: int = 1) -> None:
        """What follows is used by ``tokens`` later tokens. To be called once for all
        layers, before the first; policies that let uses age need it."""
        self._policy.advance(tokens)

    def hit(self, key: Key, uses: float = 1) -> int | None:
        """Pin ``key`` and return its slot if it is resident.

        Args:
            uses: tokens that use it.
        """
        slot = self._slot_of.get(key)
        if slot is not None:
            self._policy.touch(key, uses)
            self._pinned.add(key)
        return slot

    def place(self, key: Key, uses: float = 1) -> int | None:
        """Give ``key``, which is not resident, a slot, evicting another expert if
        need be, and pin it. None if every slot is pinned.

        Args:
            uses: tokens that use it; 0 if it is read ahead.
        """
        if not self._free:
            if len(self._pinned) == self.slots:
                return None
            victim = self._policy.victim(self._pinned)
            if victim is None:
                return None
            self.forget(victim)
            self.evictions += 1
        slot = self._free.pop()
        self._slot_of[key] = slot
        self._pinned.add(key)
        self._policy.admit(key, uses)
        return slot

    def slot(self, key: Key) -> int | None:
        """The slot of ``key`` if it is resident, which does not count as a use."""
        return self._slot_of.get(key)

    def pin(self, key: Key) -> None:
        """``key``, which is resident, must not be evicted."""
        self._pinned.add(key)

    def unpin(self, key: Key) -> None:
        """``key`` may be evicted again."""
        self._pinned.discard(key)

    def forget(self, key: Key) -> None:
        """``key`` is not resident any more: evicted, or its read has failed."""
        self._free.append(self._slot_of.pop(key))
        self._policy.remove(key)
        self._pinned.discard(key)
