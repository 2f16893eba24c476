"""The expert stream: routed experts from the drive through a bounded cache.

A layer's missing experts are requested at once. While they are being read, the
caller multiplies what it already has (the shared expert), then the experts found
in memory are multiplied, then each missing one as its read completes.

Every expert's output has a row of its own and the rows are added in the router's
order, so the result does not depend on what was in memory or which read was first.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headgate._native import AlignedBuffer, ReadQueue, crc32c
from headgate.errors import DamagedStore, StoreError
from headgate.ops import Array, ExpertBatch, Ops
from headgate.store import Store
from headgate.stream.residency import LRU, Key, Policy, Residency


@dataclass
class StreamStats:
    """Counts since the stream was opened."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0


@dataclass
class Request:
    """The experts that one layer needs for a number of tokens.

    Pairs (token, rank) are sorted by expert: expert ``experts[i]`` has the pairs
    ``order[splits[i] : splits[i + 1]]``.
    """

    index: int
    shape: tuple[int, int]
    experts: list[int]
    order: npt.NDArray[np.int32]
    splits: npt.NDArray[np.int32]
    resident: list[tuple[int, int]] = field(default_factory=list)  # (i, slot)
    waiting: deque[int] = field(default_factory=deque)  # i, not submitted yet
    reading: dict[int, int] = field(default_factory=dict)  # i -> slot


class ExpertStream:
    """Routed experts of one store.

    Args:
        slots: experts that the cache holds, at least 1.
        bits: precision to read experts at.
        policy: what to evict; LRU unless told otherwise.
    """

    def __init__(
        self, store: Store, ops: Ops, slots: int, bits: int, policy: Policy | None = None
    ) -> None:
        self.store, self.ops, self.bits = store, ops, bits
        self.stats = StreamStats()
        self.residency = Residency(slots, policy or LRU())
        self._record_bytes = store.layout.prefix_bytes(bits)
        self._segments = store.layout.prefix(bits)
        self._arena = AlignedBuffer(slots * self._record_bytes, True)
        self._memory = self._arena.array()
        self._queue = ReadQueue()
        self._target = self._queue.add_buffer(self._arena)
        self._files = [
            self._queue.add_file(str(store.expert_path(layer))) for layer in store.manifest.layers
        ]
        if not all(self._queue.file_is_direct(file) for file in self._files):
            print(
                "headgate: note: this file system does not allow direct reads; "
                "reading through the page cache",
                file=sys.stderr,
            )
        self._index_of = {layer: i for i, layer in enumerate(store.manifest.layers)}
        self._kernel = ops.expert_kernel(store.layout, bits)
        self._open: Request | None = None
        # A record is checked when it is first read by this process.
        shape = (len(store.manifest.layers), store.manifest.num_experts)
        self._checked = np.zeros(shape, np.bool_)

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Request:
        """Start reading the experts of ``layer`` that are not in memory.

        Args:
            ids: int32 [T, K].
        """
        flat = ids.ravel()
        order = np.argsort(flat, kind="stable").astype(np.int32)
        experts, starts = np.unique(flat[order], return_index=True)
        splits = np.append(starts, len(flat)).astype(np.int32)
        index = self._index_of[layer]
        if self._open is not None:  # its caller was interrupted before computing
            self._abandon(self._open)
        self._open = request = Request(
            index, (ids.shape[0], ids.shape[1]), experts.tolist(), order, splits
        )
        for i, expert in enumerate(request.experts):
            slot = self.residency.hit((index, expert))
            if slot is None:
                request.waiting.append(i)
            else:
                request.resident.append((i, slot))
        self.stats.hits += len(request.resident)
        self.stats.misses += len(request.waiting)
        self._submit(request)
        return request

    def compute(self, request: Request, x: Array, weights: Array, base: Array) -> Array:
        """base + sum over k of weights[:, k] * expert_k(x).

        Args:
            x, base: [T, hidden]; weights: [T, K].

        Raises:
            DamagedStore: a record does not match its checksum; nothing is computed
                from it.
            StoreError: a read failed.
        """
        tokens, k = request.shape
        y = self.ops.empty(tokens * k, self.store.manifest.experts.hidden_size)
        try:
            self._multiply(request, request.resident, x, y)
            while request.reading or request.waiting:
                done = self._wait(request)
                self._multiply(request, done, x, y)
                self._submit(request)
        except BaseException:
            self._abandon(request)
            raise
        self._open = None
        return self.ops.combine(y, weights, base)

    def _submit(self, request: Request) -> None:
        reads = []
        while request.waiting:
            i = request.waiting[0]
            slot = self.residency.place((request.index, request.experts[i]))
            if slot is None:
                break
            request.waiting.popleft()
            request.reading[i] = slot
            offset = request.experts[i] * self.store.layout.stride
            reads.append(
                (
                    i,
                    self._files[request.index],
                    offset,
                    self._record_bytes,
                    self._target,
                    slot * self._record_bytes,
                    0,
                )
            )
        if reads:
            self._queue.submit(reads)

    def _wait(self, request: Request) -> list[tuple[int, int]]:
        done = []
        for i, error, nbytes, _ in self._queue.wait():
            self.stats.bytes_read += nbytes
            key = (request.index, request.experts[i])
            if error:
                reason = "the file ends early" if error < 0 else os.strerror(error)
                raise StoreError(f"cannot read {self._describe(key, 0)}: {reason}")
            slot = request.reading[i]
            self._check(key, slot)
            del request.reading[i]
            done.append((i, slot))
        return done

    def _check(self, key: Key, slot: int) -> None:
        if self._checked[key]:
            return
        record = self._memory[slot * self._record_bytes : (slot + 1) * self._record_bytes]
        for number, segment in enumerate(self._segments):
            if (
                crc32c(record[segment.offset : segment.end])
                != self.store.checksums[key[0], key[1], number]
            ):
                raise DamagedStore(
                    f"{self._describe(key, number)} is damaged: its checksum does not match; "
                    "run `headgate verify` to find all damage, and convert again to repair it"
                )
        self._checked[key] = True

    def _describe(self, key: Key, segment: int) -> str:
        return self.store.describe(key[0], key[1], segment)

    def _multiply(
        self, request: Request, experts: list[tuple[int, int]], x: Array, y: Array
    ) -> None:
        if not experts:
            return
        parts = [request.order[request.splits[i] : request.splits[i + 1]] for i, _ in experts]
        pairs = np.concatenate(parts)
        splits = np.zeros(len(parts) + 1, np.int32)
        np.cumsum([len(part) for part in parts], out=splits[1:])
        offsets = [slot * self._record_bytes for _, slot in experts]
        batch = ExpertBatch(offsets, splits, pairs // request.shape[1], pairs)
        self._kernel(self._memory, batch, x, y)
        for i, _ in experts:
            self.residency.unpin((request.index, request.experts[i]))

    def _abandon(self, request: Request) -> None:
        """Leave the stream usable after an error or an interrupt."""
        while self._queue.outstanding:
            self._queue.wait()
        for i in request.reading:
            self.residency.forget((request.index, request.experts[i]))
        for expert in request.experts:
            self.residency.unpin((request.index, expert))
        self._open = None
