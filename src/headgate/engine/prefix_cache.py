"""States after prefixes of prompts, kept so that another prompt can begin from them.

A state is kept as it is, in float32, and where prompts may be cut
(:mod:`headgate.engine.chunks`). So what follows is the same, bit for bit, as if the prefix
had been processed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headgate.engine.prefix_files import PrefixFiles, key_of
from headgate.engine.snapshot import VERSION, Floats, Snapshot
from headgate.engine.snapshot_memory import SnapshotMemory
from headgate.errors import UsageError
from headgate.models import State
from headgate.paths import cache_folder

if TYPE_CHECKING:
    from headgate.engine.engine import Engine
    from headgate.engine.session import Session

DISK_LIMIT = 4 << 30
#: Seconds to write in at the end.
FLUSH_S = 10.0


class PrefixCache:
    """Snapshots in memory and on the drive.

    One thread restores and keeps; a thread of the cache's own writes files. A snapshot is
    made in memory, so there is room for none that is larger than ``memory``.

    Args:
        engine: whose sequences these are.
        memory: bytes of the snapshots in memory. The engine's budget has
            ``Engine.load(prefix_bytes=...)`` for them, which is the default; the caller of
            a cache with more has to leave that much out of the engine's budget.
        disk: bytes of the files, those of other stores in the folder included; 0 for none.
        folder: where they lie; below the user's cache folder unless given.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        memory: int | None = None,
        disk: int = DISK_LIMIT,
        folder: Path | None = None,
    ) -> None:
        if engine.depends_on_cache:
            raise UsageError("states cannot be kept: with refine they depend on what was in memory")
        self._config, self._ops, self._new_state = engine.config, engine.ops, engine.model.new_state
        self._cuts = engine.cuts
        memory = engine.budget.prefixes if memory is None else memory
        if memory < 0 or disk < 0:
            raise UsageError("the limits of a prefix cache must not be negative")
        self.identity = identity_of(engine)
        self._files: PrefixFiles | None = None
        if disk:
            folder = cache_folder() / "prefixes" if folder is None else folder
            self._files = PrefixFiles(folder, self.identity, disk)
        self._lock = threading.Condition()
        self._memory = SnapshotMemory(memory)
        self._unwritten: dict[bytes, None] = {}  # in order
        self._writing: bytes | None = None
        self._closing = False
        self._writer: threading.Thread | None = None
        self._reader: threading.Thread | None = None

    # Finding

    def longest(self, ids: Sequence[int]) -> int:
        """Tokens of the longest kept prefix of ``ids``; 0 if there is none."""
        found = self._candidates(np.asarray(ids, "<i4"))
        return found[0][1] if found else 0

    def restore(self, session: Session, prompt: Sequence[int]) -> int:
        """Put an empty session behind the longest kept prefix of ``prompt`` that leaves
        at least one token of it; returns the tokens of the prefix, 0 if there is none."""
        if session.tokens:
            raise UsageError("only an empty session can be put behind a prefix")
        ids = np.asarray(prompt, "<i4")
        for key, length in self._candidates(ids[:-1]):
            arrays = [self._ops.to_numpy(array) for array in session.state.arrays(length)]
            in_memory = self._copy(key, ids[:length], arrays)
            if in_memory or self._read(key, ids[:length], arrays):
                session.state.length = length
                session.tokens = list(prompt[:length])
                if not in_memory:
                    session.restored = length, session.state.marks()
                return length
            session.state.clear()
        return 0

    def remember(self, session: Session) -> None:
        """Keep in memory what was read from the drive for a session, for the next one.
        Takes time, so it is done when there is some."""
        if session.restored is not None:
            (length, marked), session.restored = session.restored, None
            if self._promise(self._key(np.asarray(session.tokens[:length], "<i4")), length):
                self.keep(session.tokens, session.state, length, marked)

    def _candidates(self, ids: npt.NDArray[np.int32]) -> list[tuple[bytes, int]]:
        """(key, length) of the kept prefixes of ``ids``, longest first."""
        with self._lock:
            known = dict(self._memory.lengths())
            if self._files is not None:
                known.update(self._files.lengths)
        digest, start, found = hashlib.sha256(self.identity), 0, []
        for length in sorted({n for n in known.values() if n <= len(ids)}):
            digest.update(ids[start:length].tobytes())
            start = length
            key = digest.digest()[:16]
            if known.get(key) == length:
                found.append((key, length))
        return found[::-1]

    def _copy(self, key: bytes, tokens: npt.NDArray[np.int32], arrays: Sequence[Floats]) -> bool:
        with self._lock:
            snapshot = self._memory.use(key)
        if snapshot is None or not np.array_equal(snapshot.tokens, tokens):
            return False
        for array, kept in zip(arrays, snapshot.arrays, strict=True):
            array[:] = kept
        return True

    def _read(self, key: bytes, tokens: npt.NDArray[np.int32], arrays: Sequence[Floats]) -> bool:
        if self._files is None:
            return False
        found = self._files.read(key, len(tokens), arrays)
        return found is not None and np.array_equal(found, tokens)

    # Reading before it is asked for

    def preload(self) -> None:
        """Begin to read what was used last into memory, up to half of it, on a thread of
        its own: those who were here before a restart are the likeliest to come."""
        if self._files is not None and self._reader is None:
            self._reader = threading.Thread(
                target=self._preload, name="headgate-preload", daemon=True
            )
            self._reader.start()

    def _preload(self) -> None:
        assert self._files is not None
        for key, length in self._files.newest():
            nbytes = self._nbytes(length)
            with self._lock:
                if self._closing:
                    return
                if not self._memory.reserve(key, nbytes):
                    continue
            arrays = [self._ops.to_numpy(x) for x in self._new_state(length).arrays(length)]
            tokens = self._files.read(key, length, arrays, used=False)
            with self._lock:
                snapshot = None if tokens is None else Snapshot(tokens, arrays)
                self._memory.put_first(key, nbytes, snapshot)

    # Keeping

    def save(self, session: Session) -> bool:
        """Keep a session's state as it is now; whether there is room for it.

        Raises:
            UsageError: it is at no cut, or tokens were appended where there was none, as
                those of an answer are: going on from it would not give the bits of a
                prompt.
        """
        length = len(session.tokens)
        if not length or not session.at_cuts or not self._cuts.has(session.tokens, length):
            raise UsageError(
                "a state can be kept after prompts, at the end of a turn or a multiple of "
                f"{self._cuts.grid} tokens"
            )
        if not self.promise(session.tokens, 0, length, [length]):
            return False
        self.keep(session.tokens, session.state, length)
        return True

    def promise(
        self, tokens: Sequence[int], start: int, end: int, positions: Iterable[int]
    ) -> tuple[int, ...]:
        """Positions in (start, end] at which a state should be copied, because ``positions``
        ask for it, moved down to a cut. Room is made for them; each must be passed to
        :meth:`keep` or :meth:`break_promises` called."""
        wanted = {self._cuts.last(tokens, x) for x in positions if x <= len(tokens)}
        ids = np.asarray(tokens[:end], "<i4")
        inside = sorted(position for position in wanted if start < position <= end)
        # The last first: it serves the next turn of the same conversation.
        chosen = [x for x in reversed(inside) if self._promise(self._key(ids[:x]), x)]
        return tuple(reversed(chosen))

    def keep(
        self,
        tokens: Sequence[int],
        state: State,
        length: int,
        marked: Mapping[int, tuple[Floats, ...]] | None = None,
    ) -> None:
        """Keep the state after the first ``length`` tokens, for which there is a promise.

        Args:
            marked: per layer what was copied at ``length``, if the state has gone on
                (:attr:`headgate.models.Part.marked`).
        """
        arrays = [self._ops.to_numpy(array) for array in state.copy(length, marked)]
        ids = np.asarray(tokens[:length], "<i4")
        self._insert(self._key(ids), Snapshot(ids, arrays))

    def break_promises(self) -> None:
        """Nothing will come of what there is a promise for."""
        with self._lock:
            self._memory.break_promises()

    def _key(self, ids: npt.NDArray[np.int32]) -> bytes:
        return key_of(self.identity, ids)

    def _nbytes(self, length: int) -> int:
        return self._config.state_bytes(length) + 4 * length

    def _promise(self, key: bytes, length: int) -> bool:
        with self._lock:
            found = self._memory.promise(key, self._nbytes(length), busy=self._writing)
            # What could not be written in time is lost with it.
            for victim in [x for x in self._unwritten if x not in self._memory]:
                del self._unwritten[victim]
            return found

    def _insert(self, key: bytes, snapshot: Snapshot) -> None:
        with self._lock:
            self._memory.put(key, snapshot)
            if self._files is not None and key not in self._files.lengths:
                self._unwritten[key] = None
                if self._writer is None and not self._closing:
                    self._writer = threading.Thread(
                        target=self._write, name="headgate-prefixes", daemon=True
                    )
                    self._writer.start()
                self._lock.notify_all()

    # Writing

    def _write(self) -> None:
        assert self._files is not None
        while True:
            with self._lock:
                while not self._unwritten:
                    if self._closing:
                        return
                    self._lock.wait()
                key = self._writing = next(iter(self._unwritten))
                snapshot = self._memory[key]
            try:
                self._files.write(key, snapshot)
            except OSError as error:
                print(
                    f"headgate: note: cannot keep a prefix in {self._files.folder}: "
                    f"{error.strerror}",
                    file=sys.stderr,
                )
            with self._lock:
                self._unwritten.pop(key, None)
                self._writing = None
                self._lock.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything is on the drive; whether it is."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            while self._unwritten:
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._lock.wait(left)
        return True

    def close(self, timeout: float | None = FLUSH_S) -> None:
        """Write what has not been written, for at most so many seconds, and end the thread."""
        self.flush(timeout)
        with self._lock:
            self._closing = True
            self._unwritten.clear()
            self._lock.notify_all()
        for thread in (self._reader, self._writer):
            if thread is not None:
                thread.join(timeout)

    def figures(self) -> dict[str, int]:
        """Bytes and snapshots in memory and on the drive."""
        with self._lock:
            return {
                "memory_bytes": self._memory.used,
                "memory_limit": self._memory.limit,
                "in_memory": len(self._memory),
                "disk_bytes": 0 if self._files is None else self._files.nbytes,
                "disk_limit": 0 if self._files is None else self._files.limit,
                "on_disk": 0 if self._files is None else len(self._files.lengths),
            }


def identity_of(engine: Engine) -> bytes:
    """What a state depends on beside the tokens: the store, the knobs, the program."""
    settings = {
        "knobs": engine.knobs,
        "grid": engine.cuts.grid,
        "turn_ends": sorted(engine.cuts.turn_ends),
        "format": VERSION,
        "by": version("headgate"),
    }
    digest = hashlib.sha256(engine.store.manifest.to_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.digest()
