"""Records from the drive into the slots of an arena, checked on their first reading."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from headgate._native import AlignedBuffer, ReadQueue, crc32c
from headgate.errors import DamagedStore, StoreError
from headgate.store import Store
from headgate.stream.options import StreamOptions
from headgate.stream.residency import Key
from headgate.stream.tuning import Merging

DEMAND, BACKGROUND = 0, 1


@dataclass(frozen=True)
class Read:
    """One record on its way: the expert, and the slot that it is read into.

    Attributes:
        bits: at which the expert can be used then; 0 for all that the reader reads.
        have: at which it can be used already, so that only the rest is read; 0 for none.
    """

    key: Key
    slot: int
    bits: int = 0
    have: int = 0


class RecordReader:
    """Reads record prefixes of up to ``bits`` bits.

    Attributes:
        bits_in: for each slot the bits at which what it holds can be used.
        memory: uint8, the arena; slot i starts at i * record_bytes.
        record_bytes: bytes of a record's prefix.
        queue: the read queue, for its statistics.
    """

    def __init__(self, store: Store, slots: int, bits: int, options: StreamOptions) -> None:
        self._store = store
        self._segments = store.layout.prefix(bits)
        self._bits = bits
        # bits -> segments of the prefix, and its end
        self._count = {s.bits: i + 1 for i, s in enumerate(self._segments)}
        self._end = {s.bits: s.end for s in self._segments}
        self.bits_in = [0] * slots
        self.record_bytes = store.layout.prefix_bytes(bits)
        self._arena = AlignedBuffer(slots * self.record_bytes, True)
        self.memory = self._arena.array()
        sizes = {"chunk_bytes": options.chunk_bytes, "depth": options.depth}
        self.queue = ReadQueue("auto", **{name: n for name, n in sizes.items() if n})
        if options.throttle:
            self.queue.set_throttle(options.throttle)
        self._merging = Merging(options)
        self._reads: dict[int, Read] = {}
        self._gaps: dict[int, int] = {}  # bytes thrown away before a merged record, by tag
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
        # Leading segments that have been checked: each is when it is first read by this process.
        self._checked = np.zeros((len(paths), store.manifest.num_experts), np.uint8)
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
                start, end = self._span(read)
                record = read.key[1] * self._store.layout.stride
                source = self._maps[read.key[0]][record + start : record + end]
                self._slot(read.slot)[start:end] = source
                self._done.append((read, end - start))
            return
        requests = []
        for read in reads:
            layer, expert = read.key
            start, end = self._span(read)
            self._tag += 1
            self._reads[self._tag] = read
            requests.append(
                (
                    self._tag,
                    self._files[layer],
                    expert * self._store.layout.stride + start,
                    end - start,
                    self._target,
                    read.slot * self.record_bytes + start,
                    priority,
                )
            )
        runs = []
        if priority == DEMAND and len(reads) > 1:
            spans = [request[1:4] for request in requests]
            runs = self._merging.runs(spans, len(self._reads) - len(reads))
        self.queue.submit(requests, runs)
        at = 0
        for size in runs:
            for before, now in pairwise(requests[at : at + size]):
                self._gaps[now[0]] = now[2] - before[2] - before[3]
            at += size

    def wait(self, block: bool = True) -> list[tuple[Read, int]]:
        """Reads that have completed, and the bytes of each, with those between it and the
        record before if they were merged; at least one if ``block`` and any is outstanding.

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
                done.append((read, nbytes + self._gaps.pop(tag, 0)))
        return done

    def check(self, read: Read) -> None:
        """Compare a completed read with its checksums, as far as these segments are read
        for the first time, and note the bits in its slot.

        Raises:
            DamagedStore: they differ.
        """
        bits = read.bits or self._bits
        self._check(read, self._count[bits])
        self.bits_in[read.slot] = bits

    def _check(self, read: Read, count: int) -> None:
        checked = int(self._checked[read.key])
        if checked >= count:
            return
        record, (layer, expert) = self._slot(read.slot), read.key
        for number, segment in enumerate(self._segments[checked:count], checked):
            expected = self._store.checksums[layer, expert, number]
            if crc32c(record[segment.offset : segment.end]) != expected:
                raise DamagedStore(
                    f"{self.describe(read.key, number)} is damaged: its checksum does not match; "
                    "run `headgate verify` to find all damage, and convert again to repair it"
                )
        self._checked[read.key] = count

    def cancel_background(self) -> list[Read]:
        """Drop background reads that have not begun; their slots are free again. Those
        into slots that hold a part already go on."""
        reads = [self._reads.pop(tag) for tag in self.queue.cancel_background()]
        kept = [read for read in reads if read.have]
        if kept:
            self.submit(kept, BACKGROUND)
        return [read for read in reads if not read.have]

    def drain(self) -> None:
        """Wait for every read and forget it, whatever its outcome."""
        while self.queue.outstanding:
            self.queue.wait()
        self._reads.clear()
        self._gaps.clear()
        self._done.clear()

    def describe(self, key: Key, segment: int) -> str:
        """An expert's segment in words."""
        return self._store.describe(key[0], key[1], segment)

    def _span(self, read: Read) -> tuple[int, int]:
        """First byte of the record that is read, and the one behind the last."""
        return self._end[read.have] if read.have else 0, self._end[read.bits or self._bits]

    def _slot(self, slot: int) -> npt.NDArray[np.uint8]:
        return self.memory[slot * self.record_bytes : (slot + 1) * self.record_bytes]
