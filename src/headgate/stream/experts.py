"""The expert stream: routed experts from the drive through a bounded cache.

A layer's missing experts are requested at once. While they are being read, the
caller multiplies what it already has (the shared expert), then the experts found
in memory are multiplied, then each missing one as its read completes.

Every expert's output has a row of its own and the rows are added in the router's
order, so the result does not depend on what was in memory or which read was first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt

from headgate.ops import Array, ExpertBatch, Ops
from headgate.store import Store
from headgate.stream.lookahead import Lookahead
from headgate.stream.options import StreamOptions, StreamStats
from headgate.stream.policies import make_policy
from headgate.stream.reader import Read, RecordReader
from headgate.stream.recorder import Recorder
from headgate.stream.residency import Residency

#: Records of a layer that are read at a time. Enough to keep any drive busy; more would
#: only evict, on their way through, experts that the next token needs.
MOST_READING = 32


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
    reading: dict[int, Read] = field(default_factory=dict)  # by expert

    def uses(self, i: int) -> int:
        """Tokens that use expert ``experts[i]``."""
        return int(self.splits[i + 1] - self.splits[i])


class ExpertStream:
    """Routed experts of one store.

    Args:
        slots: experts that the cache holds, at least 1.
        bits: precision to read experts at.
        recorder: told of every request; shares nothing else with the stream.
    """

    def __init__(
        self,
        store: Store,
        ops: Ops,
        slots: int,
        bits: int,
        options: StreamOptions | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.store, self.ops, self.bits = store, ops, bits
        self.options = options or StreamOptions()
        self.stats = StreamStats()
        policy = make_policy(self.options.policy, slots)
        make = Residency if recorder is None else recorder.residency
        self.residency, self._recorder = make(slots, policy), recorder
        self.reader = RecordReader(store, slots, bits, self.options)
        self.ahead = Lookahead(self.residency, self.reader, self.stats, self.options.lookahead)
        self._kernel = ops.expert_kernel(store.layout, bits)
        self._index_of = {layer: i for i, layer in enumerate(store.manifest.layers)}
        self._open: Request | None = None
        if recorder is not None:
            recorder.begin(self)

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Request:
        """Start reading the experts of ``layer`` that are not in memory.

        Args:
            ids: int32 [T, K].
        """
        began = perf_counter()
        if self._open is not None:  # its caller was interrupted before computing
            self._abandon(self._open)
        if self._recorder is not None:
            self._recorder.requested(self._index_of[layer], ids)
        flat, index = ids.ravel(), self._index_of[layer]
        order = np.argsort(flat, kind="stable").astype(np.int32)
        experts, starts = np.unique(flat[order], return_index=True)
        splits = np.append(starts, len(flat)).astype(np.int32)
        request = Request(index, (ids.shape[0], ids.shape[1]), experts.tolist(), order, splits)
        self._open = request
        if index == 0:
            self.residency.advance(len(ids))
        under_way = self.ahead.claim(index, request.experts, len(ids))
        for i, expert in enumerate(request.experts):
            slot = self.residency.hit((index, expert), request.uses(i))
            if expert in under_way:
                request.reading[expert] = under_way[expert]
            elif slot is None:
                request.waiting.append(i)
            else:
                request.resident.append((i, slot))
        self.stats.hits += len(request.resident)
        self.stats.misses += len(request.waiting) + len(under_way)
        self._submit(request)
        self.stats.keep_s += perf_counter() - began
        return request

    def suggest(self, layer: int, ids: npt.NDArray[np.int32]) -> None:
        """Experts that ``layer`` will probably need, likeliest first: they are read
        when the drive has nothing else to do."""
        self.ahead.suggest(self._index_of[layer], ids.tolist())

    @property
    def wants_suggestions(self) -> bool:
        """Whether :meth:`suggest` would do anything."""
        return self.ahead.active

    def compute(self, request: Request, x: Array, weights: Array, base: Array) -> Array:
        """base + sum over k of weights[:, k] * expert_k(x).

        Args:
            x, base: [T, hidden]; weights: [T, K].

        Raises:
            DamagedStore: a record does not match its checksum; nothing is computed
                from it.
            StoreError: a read failed.
        """
        began, stats = perf_counter(), self.stats
        waited, computed = stats.wait_s, stats.compute_s
        tokens, k = request.shape
        y = self.ops.empty(tokens * k, self.store.manifest.experts.hidden_size)
        try:
            ready = request.resident
            if self.options.overlap:
                self._multiply(request, ready, x, y)
                ready = []
            while request.reading or request.waiting:
                ready += self._wait(request)
                blocked = not request.reading and bool(request.waiting)
                if self.options.overlap or blocked:
                    self._multiply(request, ready, x, y)
                    ready = []
                self._submit(request)
            self._multiply(request, ready, x, y)
        except BaseException:
            self._abandon(request)
            raise
        self._open = None
        if not self.options.cache:
            self._forget(request)
        out = self.ops.combine(y, weights, base)
        stats.layers += 1
        stats.stalls += stats.wait_s > waited
        spent = perf_counter() - began
        stats.keep_s += spent - (stats.wait_s - waited) - (stats.compute_s - computed)
        if self._recorder is not None:
            self._recorder.computed(weights)
        return out

    def _submit(self, request: Request) -> None:
        reads = []
        while request.waiting and len(request.reading) < MOST_READING:
            i = request.waiting[0]
            expert = request.experts[i]
            key = (request.index, expert)
            slot = self.residency.place(key, request.uses(i))
            if slot is None:
                break
            request.waiting.popleft()
            read = request.reading[expert] = Read(key, slot)
            reads.append(read)
        if reads:
            self.reader.submit(reads)

    def _wait(self, request: Request) -> list[tuple[int, int]]:
        """(i, slot) of the request's experts whose reads have completed."""
        done = self.reader.wait(block=False)
        if not done and request.reading:
            began = perf_counter()
            done = self.reader.wait()
            self.stats.wait_s += perf_counter() - began
        ready = []
        for read, nbytes in done:
            self.stats.bytes_read += nbytes
            mine = read.key[0] == request.index and request.reading.get(read.key[1]) == read
            if not mine:
                self.ahead.complete(read)
                continue
            self.reader.check(read)
            del request.reading[read.key[1]]
            ready.append((request.experts.index(read.key[1]), read.slot))
        return ready

    def _multiply(
        self, request: Request, experts: list[tuple[int, int]], x: Array, y: Array
    ) -> None:
        if not experts:
            return
        began = perf_counter()
        parts = [request.order[request.splits[i] : request.splits[i + 1]] for i, _ in experts]
        pairs = np.concatenate(parts)
        splits = np.zeros(len(parts) + 1, np.int32)
        np.cumsum([len(part) for part in parts], out=splits[1:])
        offsets = [slot * self.reader.record_bytes for _, slot in experts]
        batch = ExpertBatch(offsets, splits, pairs // request.shape[1], pairs)
        self._kernel(self.reader.memory, batch, x, y)
        for i, _ in experts:
            self.residency.unpin((request.index, request.experts[i]))
        self.stats.compute_s += perf_counter() - began

    def _forget(self, request: Request) -> None:
        for expert in request.experts:
            if (request.index, expert) in self.residency:
                self.residency.forget((request.index, expert))

    def _abandon(self, request: Request) -> None:
        """Leave the stream usable after an error or an interrupt."""
        self.reader.drain()
        self.ahead.abandon()
        for expert in request.reading:
            self.residency.forget((request.index, expert))
        for expert in request.experts:
            self.residency.unpin((request.index, expert))
        self._open = None
