"""The expert stream: routed experts from the drive through a bounded cache.

A layer's missing experts are requested at once. While they are being read, the
caller multiplies what it already has (the shared expert), then the experts found
in memory are multiplied, then each missing one as its read completes.

Every expert's output has a row of its own and the rows are added in the router's
order, so the result does not depend on what was in memory or which read was first.
"""

from __future__ import annotations

from itertools import accumulate
from time import perf_counter

import numpy as np
import numpy.typing as npt

from headgate.errors import UsageError
from headgate.ops import Array, ExpertBatch, Ops
from headgate.store import Store
from headgate.stream.lookahead import Lookahead
from headgate.stream.options import StreamOptions, StreamStats
from headgate.stream.policies import make_policy
from headgate.stream.precision import Precision
from headgate.stream.reader import Read, RecordReader
from headgate.stream.recorder import Recorder
from headgate.stream.refine import Refinement
from headgate.stream.request import Request
from headgate.stream.residency import Residency

#: Records of a layer that are read at a time. Enough to keep any drive busy; more would
#: only evict, on their way through, experts that the next token needs.
MOST_READING = 32


class ExpertStream:
    """Routed experts of one store.

    Args:
        slots: experts that the cache holds, at least 1.
        bits: precision to read experts at; its highest is that of a slot.
        recorder: told of every request; shares nothing else with the stream.

    Raises:
        UsageError: a recorder, and more than one precision: a trace has none.
    """

    def __init__(
        self,
        store: Store,
        ops: Ops,
        slots: int,
        bits: int | Precision,
        options: StreamOptions | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.store, self.ops = store, ops
        self.precision = Precision.of(bits)
        self.bits = self.precision.high
        if self.precision.mixed and recorder is not None:
            raise UsageError(
                "a route trace cannot hold experts that are read at several precisions"
            )
        self.options = options or StreamOptions()
        self.stats = StreamStats()
        policy = make_policy(self.options.policy, slots)
        make = Residency if recorder is None else recorder.residency
        self.residency, self._recorder = make(slots, policy), recorder
        self.reader = RecordReader(store, slots, self.bits, self.options)
        self.ahead = Lookahead(
            self.residency,
            self.reader,
            self.stats,
            self.options.lookahead,
            self.precision.of_layer,
        )
        self._refine: Refinement | None = None
        if self.precision.refine and self.options.cache:
            self._refine = Refinement(self.residency, self.reader, self.stats, self.precision)
        self._sizes = {b: store.layout.prefix_bytes(b) for b in self.precision.all}
        self._kernels = {b: ops.expert_kernel(store.layout, b) for b in self.precision.all}
        self._index_of = {layer: i for i, layer in enumerate(store.manifest.layers)}
        self._open: Request | None = None
        if recorder is not None:
            recorder.begin(self)

    def request(
        self, layer: int, ids: npt.NDArray[np.int32], fine: npt.NDArray[np.bool_] | None = None
    ) -> Request:
        """Start reading the experts of ``layer`` that are not in memory.

        Args:
            ids: int32 [T, K]; -1 for none, whose weight is 0.
            fine: bool [T, K], those wanted at the higher precision; none if not given.
        """
        began = perf_counter()
        if self._open is not None:  # its caller was interrupted before computing
            self._abandon(self._open)
        if self._recorder is not None:
            self._recorder.requested(self._index_of[layer], ids)
        index = self._index_of[layer]
        request = self._open = Request.of(index, ids)
        if self.precision.fine_layers is not None:
            request.want_all(self.precision.of_layer(request.index))
        elif self.precision.mixed:
            request.want(fine, self.precision)
        if index == 0:
            self.residency.advance(len(ids))
            self.stats.tokens += len(ids)
        under_way = self.ahead.claim(index, request.experts, len(ids))
        for i, expert in enumerate(request.experts):
            slot = self.residency.hit((index, expert), request.uses(i))
            if expert in under_way:
                request.reading[expert] = under_way[expert]
            elif slot is None:
                request.waiting.append(i)
            else:
                request.resident.append((i, slot))
        missing = len(request.waiting) + len(under_way)
        if request.bits is not None:
            missing += self._upgrade(request)
        self.stats.hits += len(request.resident)
        self.stats.misses += missing
        self.stats.wanted_bytes += request.nbytes(self._sizes)
        self._submit(request)
        if self._refine is not None:
            self._refine.submit()
        self.stats.keep_s += perf_counter() - began
        return request

    def holds(self, layer: int, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """bool [K], which of the experts ``ids`` [K] of ``layer`` are in memory, or on
        their way there."""
        index = self._index_of[layer]
        return np.array([(index, expert) in self.residency for expert in ids.tolist()], np.bool_)

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
        # Rows of pairs without an expert are added too, with weight 0.
        make = self.ops.zeros if request.splits[0] else self.ops.empty
        y = make(tokens * k, self.store.manifest.experts.hidden_size)
        try:
            ready = request.resident
            if self._refine is not None:  # what has arrived meanwhile is used at once
                ready += self._take(request, self.reader.wait(block=False))
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
            bits = request.wants[i] if request.wants else 0
            read = request.reading[expert] = Read(key, slot, bits)
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
        return self._take(request, done)

    def _take(self, request: Request, done: list[tuple[Read, int]]) -> list[tuple[int, int]]:
        ready = []
        for read, nbytes in done:
            self.stats.bytes_read += nbytes
            mine = read.key[0] == request.index and request.reading.get(read.key[1]) == read
            if not mine:
                if self._refine is not None and read.key in self._refine:
                    self._refine.complete(read)
                else:
                    self.ahead.complete(read)
                continue
            self.reader.check(read)
            i = request.experts.index(read.key[1])
            if self._short(request, i, read.slot):  # read ahead, and not all that is wanted
                self._complete_record(request, i, read.slot)
                continue
            del request.reading[read.key[1]]
            ready.append((i, read.slot))
        return ready

    def _short(self, request: Request, i: int, slot: int) -> bool:
        """Whether ``slot`` holds too little of the i-th expert."""
        return request.bits is not None and self.reader.bits_in[slot] < request.wants[i]

    def _upgrade(self, request: Request) -> int:
        """Have what is in memory at fewer bits than wanted completed; how many those are."""
        enough = []
        for i, slot in request.resident:
            if self._short(request, i, slot):
                self._complete_record(request, i, slot)
                continue
            enough.append((i, slot))
            if self._refine is not None and self.reader.bits_in[slot] < self.bits:
                self._refine.want((request.index, request.experts[i]))
        found = len(request.resident) - len(enough)
        request.resident = enough
        self.stats.upgrades += found
        return found

    def _complete_record(self, request: Request, i: int, slot: int) -> None:
        key = (request.index, request.experts[i])
        read = None if self._refine is None else self._refine.claim(key)
        if read is None:
            read = Read(key, slot, self.precision.high, self.precision.low)
            self.reader.submit([read])
        request.reading[request.experts[i]] = read

    def _multiply(
        self, request: Request, experts: list[tuple[int, int]], x: Array, y: Array
    ) -> None:
        if not experts:
            if self._refine is not None:
                self._refine.settle()
            return
        began = perf_counter()
        here = None if self._refine is None else self.reader.bits_in
        for bits, chosen in request.by_precision(experts, self.precision, here).items():
            parts = [pairs for _, pairs in chosen]
            pairs = parts[0] if len(parts) == 1 else np.concatenate(parts)
            splits = np.array([0, *accumulate(map(len, parts))], np.int32)
            offsets = [slot * self.reader.record_bytes for slot, _ in chosen]
            batch = ExpertBatch(offsets, splits, pairs // request.shape[1], pairs)
            self._kernels[bits](self.reader.memory, batch, x, y)
        for i, _ in experts:
            key = (request.index, request.experts[i])
            if self._refine is None or key not in self._refine:
                self.residency.unpin(key)
        if self._refine is not None:
            self._refine.settle()
        self.stats.compute_s += perf_counter() - began

    def _forget(self, request: Request) -> None:
        for expert in request.experts:
            if (request.index, expert) in self.residency:
                self.residency.forget((request.index, expert))

    def _abandon(self, request: Request) -> None:
        """Leave the stream usable after an error or an interrupt."""
        self.reader.drain()
        self.ahead.abandon()
        if self._refine is not None:
            self._refine.abandon()
        for expert in request.reading:
            self.residency.forget((request.index, expert))
        for expert in request.experts:
            self.residency.unpin((request.index, expert))
        self._open = None
