"""Snapshots in memory, within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from headgate.engine.snapshot import Snapshot


class SnapshotMemory:
    """The least recently used make room for new ones. Room is promised before a snapshot is
    made, so that making it never takes more than there is.

    Not safe to use from several threads without a lock.

    Attributes:
        limit: bytes.
        used: bytes of what is here, and of what there is a promise for.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._kept: OrderedDict[bytes, Snapshot] = OrderedDict()  # least recently used first
        self._promised: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: bytes) -> bool:
        return key in self._kept

    def __getitem__(self, key: bytes) -> Snapshot:
        return self._kept[key]

    def lengths(self) -> Iterator[tuple[bytes, int]]:
        """(key, tokens) of all."""
        return ((key, len(snapshot.tokens)) for key, snapshot in self._kept.items())

    def use(self, key: bytes) -> Snapshot | None:
        """The snapshot, as the last to go from now on; None if it is not here."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def promise(self, key: bytes, nbytes: int, busy: bytes | None = None) -> bool:
        """Make room for a snapshot; False if there can be none, or no need.

        Args:
            busy: one that must stay.
        """
        if key in self._promised or nbytes > self.limit or self.use(key) is not None:
            return False
        victims = [x for x in self._kept if x != busy]
        while self.used + nbytes > self.limit:
            if not victims:
                return False
            self.used -= self._kept.pop(victims.pop(0)).nbytes
        self.used += nbytes
        self._promised[key] = nbytes
        return True

    def put(self, key: bytes, snapshot: Snapshot) -> None:
        """Keep a snapshot for which there is a promise."""
        self.used += snapshot.nbytes - self._promised.pop(key)
        self._kept[key] = snapshot

    def break_promises(self) -> None:
        """Nothing will come of what there is a promise for."""
        self.used -= sum(self._promised.values())
        self._promised.clear()

    def reserve(self, key: bytes, nbytes: int) -> bool:
        """Take ``nbytes`` for a snapshot that :meth:`put_first` will be called for, if half
        of the memory has room for it beside all that is here and it is not."""
        fits = key not in self._kept and self.used + nbytes <= self.limit // 2
        self.used += nbytes if fits else 0
        return fits

    def put_first(self, key: bytes, nbytes: int, snapshot: Snapshot | None) -> None:
        """Keep a snapshot as the first to go; None if there is none after all."""
        if snapshot is None or key in self._kept or key in self._promised:
            self.used -= nbytes
        else:
            self._kept[key] = snapshot
            self._kept.move_to_end(key, last=False)
