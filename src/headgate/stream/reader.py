"""Records from the drive into the slots of an arena, checked on their first reading."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headgate._native import AlignedBuffer, ReadQueue, crc32c
from headgate.errors import DamagedStore, StoreError
from headgate.store import Store
from headgate.stream.options import StreamOptions
from headgate.stream.residency import Key

DEMAND, BACKGROUND = 0, 1


@dataclass(frozen=True)
class Read:
    """One record on its way: the expert, and the slot that it is read into."""

    key: Key
    slot: int


class RecordReader:
    """Reads record prefixes of ``bits`` bits.

    Attributes:
        memory: uint8, the arena; slot i starts at i * record_bytes.
        record_bytes: bytes of a record's prefix.
        queue: the read queue, for its statistics.
    """

    def __init__(self, store: Store, slots: int, bits: int, options: StreamOptions) -> None:
        self._store = store
        self._segments = store.layout.prefix(bits)
        self.record_bytes = store.layout.prefix_bytes(bits)
        self._arena = AlignedBuffer(slots * self.record_bytes, True)
        self.memory = self._arena.array()
        sizes = {"chunk_bytes": options.chunk_bytes, "depth": options.depth}
        self.queue = ReadQueue("auto", **{name: n for name, n in sizes.items() if n})
        if options.throttle:
            self.queue.set_throttle(options.throttle)
        self._reads: dict[int, Read] = {}
        self._tag = 0
        paths = [store.expert_path(layer) for layer in store.manifest.layers]
        self._maps: list[npt.NDArray[np.uint8]] = []
        self._files: list[int] = []
        if options.read_mode == "mmap":
            self._maps = [np.memmap(path, np.uint8, "r") for path in paths]
        else:
            self._open([str(path) for path in paths], options.read_mode)
        # Last: opening a file tries a read, which would wait until the arena is pinned.
        self._target = self.queue.add_buffer(self._arena)
        # A record is checked when it is first read by this process.
        self._checked = np.zeros((len(paths), store.manifest.num_experts), np.bool_)
        self._done: list[tuple[Read, int]] = []  # read through a mapping, not yet returned

    def _open(self, paths: list[str], mode: str) -> None:
        self._files = [self.queue.add_file(path, mode) for path in paths]
        if mode == "auto" and not all(map(self.queue.file_is_direct, self._files)):
            print(
                "headgate: note: this file system does not allow direct reads; "
                "reading through the page cache",
                file=sys.stderr,
            )

    def submit(self, reads: list[Read], priority: int = DEMAND) -> None:
        """Start reading; the slots belong to the reader until :meth:`wait` returns them."""
        if self._maps:
            for read in reads:
                start = read.key[1] * self._store.layout.stride
                source = self._maps[read.key[0]][start : start + self.record_bytes]
                self._slot(read.slot)[:] = source
                self._done.append((read, self.record_bytes))
            return
        requests = []
        for read in reads:
            layer, expert = read.key
            self._tag += 1
            self._reads[self._tag] = read
            requests.append(
                (
                    self._tag,
                    self._files[layer],
                    expert * self._store.layout.stride,
                    self.record_bytes,
                    self._target,
                    read.slot * self.record_bytes,
                    priority,
                )
            )
        self.queue.submit(requests)

    def wait(self, block: bool = True) -> list[tuple[Read, int]]:
        """Reads that have completed, and the bytes of each; at least one if ``block``
        and any is outstanding.

        Raises:
            StoreError: a read failed.
        """
        done, self._done = self._done, []
        timeout = -1.0 if block and not done else 0.0
        if self._reads:
            for tag, error, nbytes, _ in self.queue.wait(1, timeout):
                read = self._reads.pop(tag)
                if error:
                    reason = "the file ends early" if error < 0 else os.strerror(error)
                    raise StoreError(f"cannot read {self.describe(read.key, 0)}: {reason}")
                done.append((read, nbytes))
        return done

    def check(self, read: Read) -> None:
        """Compare a completed read with its checksums, if it is this expert's first.

        Raises:
            DamagedStore: they differ.
        """
        if self._checked[read.key]:
            return
        record, (layer, expert) = self._slot(read.slot), read.key
        for number, segment in enumerate(self._segments):
            expected = self._store.checksums[layer, expert, number]
            if crc32c(record[segment.offset : segment.end]) != expected:
                raise DamagedStore(
                    f"{self.describe(read.key, number)} is damaged: its checksum does not match; "
                    "run `headgate verify` to find all damage, and convert again to repair it"
                )
        self._checked[read.key] = True

    def cancel_background(self) -> list[Read]:
        """Drop background reads that have not begun; their slots are free again."""
        return [self._reads.pop(tag) for tag in self.queue.cancel_background()]

    def drain(self) -> None:
        """Wait for every read and forget it, whatever its outcome."""
        while self.queue.outstanding:
            self.queue.wait()
        self._reads.clear()
        self._done.clear()

    def describe(self, key: Key, segment: int) -> str:
        """An expert's segment in words."""
        return self._store.describe(key[0], key[1], segment)

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        return self.memory[slot * self.record_bytes : (slot + 1) * self.record_bytes]
