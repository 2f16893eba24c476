"""What a probe does not measure: products of several tokens, and what a layer costs
besides its bytes.

Products of several tokens are timed on weights that lie in memory and fit no cache, as
the engine meets them; what a single token takes comes from the engine itself
(:mod:`headgate.plan.in_engine`). Half a minute's work, kept in the user's cache.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

import headgate
from headgate._native import AlignedBuffer, crc32c
from headgate.errors import ResourceError
from headgate.measure.bench import BUSY
from headgate.measure.launch import others_share
from headgate.measure.machine import core_count, describe_machine
from headgate.ops import ExpertBatch, load_ops
from headgate.ops.interface import DeltaShape, Ops, QuantWeight
from headgate.ops.weights import plain_weight
from headgate.paths import cache_folder
from headgate.plan import in_engine
from headgate.store import ExpertFormat, RecordLayout

MIB = 1 << 20
ROUNDS = 7
#: Tokens that share a product's weights.
TOKENS = (1, 4, 16, 64, 256)
EXPERT_BITS = (2, 3, 4, 8, 16)
ARENA_BYTES = 96 * MIB
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 512, 151936
#: Revision of what is measured; an older file is measured again.
REVISION = 3


@dataclass(frozen=True)
class Calibration:
    """Figures of one machine, all threads.

    Attributes:
        experts: bits -> tokens per expert -> weights multiplied per second, each weight
            counted once for each token.
        dense: bits (8, 16) -> tokens -> likewise.
        delta: tokens -> seconds of the delta rule per byte of state and token.
        layer_s: of a layer's fixed time; hit_s: what an expert adds that is in memory;
            wake_s: what a layer adds that had to wait, miss_s each of its reads (without the
            reading); token_s: besides layers.
        crc_bytes_per_s: of a record's checksum.
        others: share of the processor that others took meanwhile.
    """

    experts: dict[int, dict[int, float]]
    dense: dict[int, dict[int, float]]
    delta: dict[int, float]
    layer_s: float
    hit_s: float
    wake_s: float
    miss_s: float
    token_s: float
    crc_bytes_per_s: float
    others: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON, whose keys are strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Calibration:
        """Raises KeyError, TypeError, ValueError or AttributeError if it is no such thing."""
        rates = {
            name: {int(b): {int(t): _positive(v) for t, v in by.items()} for b, by in table.items()}
            for name, table in ((n, raw[n]) for n in ("experts", "dense"))
        }
        numbers = {
            name: _positive(raw[name])
            for name in ("layer_s", "hit_s", "wake_s", "miss_s", "token_s", "crc_bytes_per_s")
        }
        delta = {int(tokens): _positive(value) for tokens, value in raw["delta"].items()}
        if not all(rates["experts"].get(b, {}).get(1) for b in EXPERT_BITS) or 1 not in delta:
            raise ValueError("figures are missing")
        if not all(rates["dense"].get(b, {}).get(1) for b in (8, 16)):
            raise ValueError("figures are missing")
        others = float(raw.get("others", 0.0))
        return cls(rates["experts"], rates["dense"], delta, **numbers, others=others)


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


def calibration(progress: Callable[[str], None] = lambda _: None) -> Calibration:
    """Of this machine: from the user's cache, or measured now and kept there, unless the
    machine was too busy to be measured."""
    path, owner = cache_folder() / "calibration.json", _owner()
    try:
        raw = json.loads(path.read_bytes())
        if raw["owner"] == owner:
            return Calibration.from_dict(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    progress("measuring products and fixed times of this machine, once")
    found = measure()
    if found.others > BUSY:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        scratch.write_text(json.dumps({"owner": owner, **found.to_dict()}, indent=1) + "\n")
        scratch.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
    return found


def _owner() -> dict[str, Any]:
    machine = describe_machine()
    return {
        "headgate": headgate.__version__,
        "revision": REVISION,
        "cpu": machine["cpu"],
        "isa": machine["isa"],
        "cores": machine["cores"],
    }


def measure(threads: int | None = None) -> Calibration:
    """Measure now; takes about half a minute."""
    begun = _processor()
    ops = load_ops("cpu", threads or core_count(), False)
    arena = AlignedBuffer(ARENA_BYTES, True).array()
    arena[:] = 0x3C  # as pairs of bytes ordinary 16-bit floats; codes may be anything
    single = in_engine.measure(threads)
    experts = {bits: {t: _expert_rate(ops, arena, bits, t) for t in TOKENS} for bits in EXPERT_BITS}
    for bits, rate in single.experts.items():
        experts[bits][1] = rate
    dense = {bits: {t: _dense_rate(ops, arena, bits, t) for t in TOKENS} for bits in (8, 16)}
    dense[8][1] = single.dense
    logits = np.ones(VOCABULARY, np.float32)
    found = Calibration(
        experts,
        dense,
        {t: _delta_seconds(ops, t) for t in (1, 64)},
        single.layer_s,
        single.hit_s,
        single.wake_s,
        single.miss_s,
        token_s=_time(lambda: logits.argmax()),
        crc_bytes_per_s=ARENA_BYTES / _time(lambda: crc32c(arena)),
    )
    return replace(found, others=others_share(begun, _processor()) or 0.0)


def _processor() -> tuple[float, float, float] | None:
    """Seconds of all cores since the machine started, of those idle, and of this process."""
    try:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return None
    seconds = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
    return sum(seconds), seconds[3] + seconds[4], process_time()


def _time(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    act()
    samples = []
    for _ in range(rounds):
        began = perf_counter()
        act()
        samples.append(perf_counter() - began)
    return statistics.median(samples)


def _expert_rate(ops: Ops, arena: Any, bits: int, tokens: int) -> float:
    """Batches of 8 experts, each for ``tokens`` tokens; other ones every time."""
    layout = RecordLayout(ExpertFormat(HIDDEN, INTERMEDIATE, bits, 0 if bits == 16 else 64))
    kernel = ops.expert_kernel(layout, bits)
    count = ARENA_BYTES // layout.stride
    batches = max(1, min(count // 8, 64 // tokens))
    pairs = np.arange(8 * tokens, dtype=np.int32)
    splits = np.arange(0, 8 * tokens + 1, tokens, dtype=np.int32)
    x = np.ones((tokens, HIDDEN), np.float32)
    y = ops.empty(8 * tokens, HIDDEN)
    at = [0]

    def run() -> None:
        for _ in range(batches):
            offsets = [(at[0] + i) % count * layout.stride for i in range(8)]
            at[0] += 8
            kernel(arena, ExpertBatch(offsets, splits, pairs % tokens, pairs), x, y)

    return batches * 8 * tokens * layout.format.parameters / _time(run)


def _dense_rate(ops: Ops, arena: Any, bits: int, tokens: int) -> float:
    """A matrix of half the arena, for fewer tokens; of a few MiB for many."""
    columns = HIDDEN
    nbytes = ARENA_BYTES // 2 if tokens < 16 else 8 * MIB
    rows = nbytes // (columns * bits // 8) // 64 * 64
    if bits == 16:
        data = arena[: 2 * rows * columns].view(np.uint16).reshape(rows, columns)
        matrix = ops.matrix(plain_weight(data, "BF16"))
    else:
        matrix = ops.matrix(_coded(arena, rows, columns))
    x = np.ones((tokens, columns), np.float32)
    return tokens * rows * columns / _time(lambda: ops.linear(x, matrix))


def _coded(arena: Any, rows: int, columns: int) -> QuantWeight:
    parts, at = [], 0
    for width in (16, 8, 8, 32):
        nbytes = rows * columns // 64 * width
        parts.append(arena[at : at + nbytes].reshape(rows, -1))
        at += nbytes
    groups = rows * columns // 64
    scales = arena[at : at + 2 * groups].view(np.uint16).reshape(rows, -1)
    planes = dict(zip(("q2", "q3", "q4", "q8"), parts, strict=True))
    return QuantWeight((rows, columns), 8, 64, "bf16", scales, scales, planes)  # type: ignore[arg-type]


def _delta_seconds(ops: Ops, tokens: int) -> float:
    heads, dim, layers = 32, 128, 12
    shape = DeltaShape(16, heads, dim, dim, 1e-6)
    channels = 2 * 16 * dim + heads * dim
    rng = np.random.default_rng(0)

    def random(*size: int) -> Any:
        return rng.standard_normal(size, np.float32)

    qkv, z, b, a = (random(tokens, n) for n in (channels, heads * dim, heads, heads))
    fixed = (random(channels, 4), -np.ones(heads, np.float32), random(heads), random(dim))
    # As many states as a model has, so that none stays in the caches.
    states = [(ops.zeros(channels, 3), ops.zeros(heads, dim, dim)) for _ in range(layers)]

    def run() -> None:
        for conv, state in states:
            ops.delta_net(shape, qkv, z, b, a, *fixed, conv, state)

    return _time(run) / (layers * tokens * 4 * heads * dim * dim)
