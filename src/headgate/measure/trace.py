"""Recording a route trace: an Arrow IPC stream of what an expert stream was asked for.

One row is one request: the experts that one layer needs for one or more tokens. A row has
the router's choices and weights, what they cost, and every call to the residency of the
cache in its order, so that a replay can make the same calls. Neither text nor token ids
are in it. docs/traces.md describes the file.

Rows are written in batches as the run goes on. Each batch carries its CRC-32C and the
file needs no end, so what a killed process has written can be read.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import headgate
from headgate._native import crc32c
from headgate.errors import ResourceError, UsageError
from headgate.stream.policies import Key, Policy
from headgate.stream.residency import Residency

if TYPE_CHECKING:
    from headgate.stream import ExpertStream

FORMAT, VERSION = "headgate route trace", 1
#: A batch is written when it has as many rows or entries in its lists, or is that old.
BATCH_ROWS, BATCH_ENTRIES, BATCH_S = 2048, 1 << 18, 5.0

# Calls to the residency, 32 bits each: four for which, 12 for the layer's index, 16 for
# the expert; after ADVANCE 28 for a number of tokens.
ADVANCE, HITS, HIT, PLACE, AHEAD, UNPIN, FORGET = range(7)
MAX_LAYERS, MAX_EXPERTS, MAX_TOKENS = 1 << 12, 1 << 16, (1 << 28) - 1


def require_pyarrow() -> None:
    """Raise :class:`UsageError` unless pyarrow is installed."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise UsageError('route traces need pyarrow: pip install "headgate[traces]"') from None


def schema(about: dict[str, Any]) -> Any:
    """The Arrow schema of a trace; ``about`` goes into its metadata as JSON."""
    import pyarrow as pa

    fields = [
        ("layer", pa.uint16()),
        ("token", pa.int64()),
        ("tokens", pa.int32()),
        ("experts", pa.list_(pa.uint16())),
        ("weights", pa.list_(pa.float16())),
        ("hits", pa.int32()),
        ("misses", pa.int32()),
        ("evictions", pa.int32()),
        ("bytes", pa.int64()),
        ("start_s", pa.float64()),
        ("seconds", pa.float32()),
        ("wait_s", pa.float32()),
        ("compute_s", pa.float32()),
        ("complete", pa.bool_()),
        ("calls", pa.list_(pa.uint32())),
    ]
    metadata = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    return pa.schema([pa.field(*field, nullable=False) for field in fields], metadata=metadata)


LISTS = ("experts", "weights", "calls")


def checksum(columns: dict[str, npt.NDArray[Any]], lengths: dict[str, npt.NDArray[Any]]) -> int:
    """CRC-32C of a batch: of each column in the order of the schema the values as
    little-endian bytes (booleans one byte each), before those of a list the lengths of its
    rows as int32."""
    total = 0
    for name, values in columns.items():
        if name in lengths:
            total = crc32c(np.ascontiguousarray(lengths[name], "<i4").view(np.uint8), total)
        total = crc32c(np.ascontiguousarray(values).view(np.uint8), total)
    return total


class RecordedResidency(Residency):
    """A residency that notes every call that changed it."""

    def __init__(self, slots: int, policy: Policy, calls: list[int]) -> None:
        super().__init__(slots, policy)
        self._calls = calls

    def advance(self, tokens: int = 1) -> None:
        self._calls.append(ADVANCE << 28 | min(tokens, MAX_TOKENS))
        super().advance(tokens)

    def hit(self, key: Key, uses: float = 1) -> int | None:
        self._calls.append(call(HIT, key))
        return super().hit(key, uses)

    def place(self, key: Key, uses: float = 1) -> int | None:
        before = len(self._calls)
        slot = super().place(key, uses)
        del self._calls[before:]  # forgetting the victim is part of placing
        if slot is not None:
            self._calls.append(call(PLACE if uses else AHEAD, key))
        return slot

    def unpin(self, key: Key) -> None:
        self._calls.append(call(UNPIN, key))
        super().unpin(key)

    def forget(self, key: Key) -> None:
        self._calls.append(call(FORGET, key))
        super().forget(key)


def call(kind: int, key: Key) -> int:
    """A call in 32 bits."""
    return kind << 28 | key[0] << 16 | key[1]


class TraceRecorder:
    """A :class:`headgate.stream.recorder.Recorder` that writes a file. Use as a context
    manager, or :meth:`close` it.

    A full disk ends the recording with a note, not the run.

    Raises:
        UsageError: pyarrow is missing.
        ResourceError: from :meth:`begin`, the file cannot be written.
    """

    def __init__(self, path: Path | str) -> None:
        require_pyarrow()
        self.path = Path(path)
        self._file: Any = None
        self._calls: list[int] = []
        self._rows: dict[str, list[Any]] = {}
        self._open: tuple[int, npt.NDArray[np.int32], float, tuple[float, ...]] | None = None
        self._schema: Any = None
        self._writer: Any = None
        self._stream: ExpertStream | None = None

    def residency(self, slots: int, policy: Policy) -> Residency:
        """See :class:`Recorder`."""
        return RecordedResidency(slots, policy, self._calls)

    def begin(self, stream: ExpertStream) -> None:
        """See :class:`Recorder`."""
        import pyarrow as pa

        manifest = stream.store.manifest
        if len(manifest.layers) > MAX_LAYERS or manifest.num_experts > MAX_EXPERTS:
            raise UsageError(f"a trace holds {MAX_LAYERS} layers of {MAX_EXPERTS} experts at most")
        try:
            self._file = self.path.open("wb")
        except OSError as error:
            raise ResourceError(f"cannot write {self.path}: {error.strerror}") from None
        self._stream = stream
        self._schema = schema(_about(stream))
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self._writer = pa.ipc.new_stream(self._file, self._schema, options=options)
        self._tokens = [0] * len(manifest.layers)
        self._began = self._flushed = perf_counter()
        self._clear()

    def requested(self, index: int, ids: npt.NDArray[np.int32]) -> None:
        """See :class:`Recorder`."""
        self._end_row(None)
        self._open = (index, ids, perf_counter(), self._counts())

    def computed(self, weights: Any) -> None:
        """See :class:`Recorder`."""
        assert self._stream is not None
        self._end_row(self._stream.ops.to_numpy(weights))
        old = perf_counter() - self._flushed > BATCH_S
        if old or len(self._rows["layer"]) >= BATCH_ROWS or self._entries >= BATCH_ENTRIES:
            self._flush()

    def close(self) -> None:
        """Write what is left and end the file."""
        if self._file is None or self._file.closed:
            return
        if self._writer is not None:
            self._end_row(None)
            self._flush()
        try:
            if self._writer is not None:
                self._writer.close()
            self._file.close()
        except OSError as error:
            self._stop(error)

    def __enter__(self) -> TraceRecorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counts(self) -> tuple[float, ...]:
        assert self._stream is not None
        s = self._stream.stats
        evictions = self._stream.residency.evictions
        return s.hits, s.misses, evictions, s.bytes_read, s.wait_s, s.compute_s

    def _clear(self) -> None:
        self._rows = {field.name: [] for field in self._schema}
        self._entries = 0

    def _end_row(self, weights: npt.NDArray[np.float32] | None) -> None:
        """``weights`` is None for a request that was not computed."""
        if self._open is None or self._writer is None:
            return
        (index, ids, began, before), self._open = self._open, None
        hits, misses, evictions, nbytes, wait_s, compute_s = (
            now - then for now, then in zip(self._counts(), before, strict=True)
        )
        seconds = perf_counter() - began
        if weights is None or weights.shape != ids.shape:
            weights = np.zeros(0, np.float32)
        row = {
            "layer": index,
            "token": self._tokens[index],
            "tokens": len(ids),
            "experts": ids.ravel().astype(np.uint16),
            "weights": weights.ravel().astype(np.float16),
            "hits": hits,
            "misses": misses,
            "evictions": evictions,
            "bytes": nbytes,
            "start_s": began - self._began,
            "seconds": seconds,
            "wait_s": wait_s,
            "compute_s": compute_s,
            "complete": len(weights) > 0,
            "calls": np.array(_shorten(self._calls, index, ids), np.uint32),
        }
        self._calls.clear()
        self._tokens[index] += len(ids)
        for name, value in row.items():
            self._rows[name].append(value)
        self._entries += sum(len(self._rows[name][-1]) for name in LISTS)

    def _flush(self) -> None:
        import pyarrow as pa

        if self._writer is None or not self._rows["layer"]:
            return
        columns, lengths, arrays = {}, {}, []
        for field in self._schema:
            found = self._rows[field.name]
            if field.name in LISTS:
                width = field.type.value_type.to_pandas_dtype()
                values = np.concatenate(found).astype(width)
                lengths[field.name] = np.array([len(part) for part in found], np.int32)
                offsets = np.concatenate([[0], np.cumsum(lengths[field.name])]).astype(np.int32)
                child = pa.array(values, field.type.value_type)
                array = pa.ListArray.from_arrays(pa.array(offsets), child)
            else:
                values = np.array(found, field.type.to_pandas_dtype())
                array = pa.array(values, field.type)
            columns[field.name] = values
            arrays.append(array.cast(field.type))
        batch = pa.record_batch(arrays, schema=self._schema)
        sum_ = f"{checksum(columns, lengths):08x}"
        self._clear()
        self._flushed = perf_counter()
        try:
            self._writer.write_batch(batch, custom_metadata={"crc32c": sum_})
            self._file.flush()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._writer = None
        print(f"headgate: note: the trace {self.path} ends here: {error}", file=sys.stderr)


def _shorten(calls: list[int], index: int, ids: npt.NDArray[np.int32]) -> list[int]:
    """One HITS for what every request does: look up all its experts in ascending order."""
    wanted = [call(HIT, (index, expert)) for expert in np.unique(ids).tolist()]
    for at, found in enumerate(calls):
        if found == wanted[0] and calls[at : at + len(wanted)] == wanted:
            return [*calls[:at], HITS << 28, *calls[at + len(wanted) :]]
    return calls


def _about(stream: ExpertStream) -> dict[str, Any]:
    manifest, options = stream.store.manifest, stream.options
    return {
        "headgate": headgate.__version__,
        "model_type": manifest.model_type,
        "layers": list(manifest.layers),
        "experts": manifest.num_experts,
        "bits": stream.bits,
        "record_bytes": stream.reader.record_bytes,
        "slots": stream.residency.slots,
        "policy": options.policy,
        "cache": options.cache,
        "lookahead": options.lookahead,
        "chunk_bytes": options.chunk_bytes,
        "depth": options.depth,
    }
