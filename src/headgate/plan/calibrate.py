"""What a probe does not measure: products of several tokens, and what a layer costs
besides its bytes.

Products are timed on weights that lie in memory and fit no cache, as the engine meets
them. Fixed times come from a model so small that its arithmetic takes next to none: what
its layers take is Python, dispatch and threads. A minute's work at most, kept in the
user's cache.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

import headgate
from headgate._native import AlignedBuffer, crc32c
from headgate.engine import Engine
from headgate.errors import ResourceError
from headgate.measure.bench import BUSY
from headgate.measure.launch import others_share
from headgate.measure.machine import core_count, describe_machine
from headgate.measure.synth import SynthOptions, synth
from headgate.ops import ExpertBatch, load_ops
from headgate.ops.interface import DeltaShape, Ops, QuantWeight
from headgate.ops.weights import plain_weight
from headgate.paths import cache_folder
from headgate.store import ExpertFormat, RecordLayout, Store
from headgate.stream import ExpertStream, StreamOptions

MIB = 1 << 20
ROUNDS = 7
#: Tokens that share a product's weights.
TOKENS = (1, 4, 16, 64, 256)
EXPERT_BITS = (2, 3, 4, 8, 16)
ARENA_BYTES = 96 * MIB
HIDDEN, INTERMEDIATE = 2048, 512
#: Revision of what is measured; an older file is measured again.
REVISION = 1

TINY = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Calibration:
    """Figures of one machine, all threads.

    Attributes:
        experts: bits -> tokens per expert -> weights multiplied per second, each weight
            counted once for each token.
        dense: bits (8, 16) -> tokens -> likewise.
        delta: tokens -> seconds of the delta rule per byte of state and token.
        layer_s: of a layer's fixed time; hit_s, miss_s: what an expert adds that is in
            memory, or is read (without the reading); token_s: besides layers.
        crc_bytes_per_s: of a record's checksum.
        others: share of the processor that others took meanwhile.
    """

    experts: dict[int, dict[int, float]]
    dense: dict[int, dict[int, float]]
    delta: dict[int, float]
    layer_s: float
    hit_s: float
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
            for name in ("layer_s", "hit_s", "miss_s", "token_s", "crc_bytes_per_s")
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
    """Measure now; takes about ten seconds."""
    begun = _processor()
    ops = load_ops("cpu", threads or core_count(), False)
    arena = AlignedBuffer(ARENA_BYTES, True).array()
    arena[:] = 0x3C  # as pairs of bytes ordinary 16-bit floats; codes may be anything
    found = Calibration(
        {bits: {t: _expert_rate(ops, arena, bits, t) for t in TOKENS} for bits in EXPERT_BITS},
        {bits: {t: _dense_rate(ops, arena, bits, t) for t in TOKENS} for bits in (8, 16)},
        {t: _delta_seconds(ops, t) for t in (1, 64)},
        **_fixed(threads),
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
    # Others who are busy only ever add time.
    return statistics.quantiles(samples, n=4)[0]


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


def _fixed(threads: int | None) -> dict[str, float]:
    """Fixed seconds of layers, tokens and experts, from a tiny model."""
    with tempfile.TemporaryDirectory(prefix="headgate-") as folder:
        path = synth(Path(folder) / "tiny.headgate", dict(TINY), SynthOptions()).out
        store = Store.open(path)
        whole = _token_s(store, threads, k=8)
        few = _token_s(store, threads, k=2)
        missing = _token_s(store, threads, k=8, cache=False)
    layers = int(TINY["num_hidden_layers"])  # type: ignore[call-overload]
    hit = max(1e-7, (whole[0] - few[0]) / (6 * layers))
    miss = max(1e-7, (missing[0] - missing[1] - whole[0]) / (8 * layers))
    head = whole[2]
    layer = max(1e-6, (whole[0] - head) / layers - 8 * hit)
    return {"layer_s": layer, "hit_s": hit, "miss_s": miss, "token_s": head}


def _token_s(
    store: Store, threads: int | None, k: int, cache: bool = True
) -> tuple[float, float, float]:
    """Seconds of a token, of that waiting for reads, and outside the layers."""
    options = StreamOptions(lookahead=0, cache=cache)
    engine = Engine(store, threads=threads, context=512, experts_per_token=k, stream=options)
    slots = len(store.manifest.layers) * store.manifest.num_experts
    engine.experts = ExpertStream(store, engine.ops, slots, store.manifest.experts.bits, options)
    session = engine.new_session()
    logits = session.append(np.random.default_rng(0).integers(0, 512, 256).tolist())
    stats, samples = engine.experts.stats, []
    for _ in range(60):
        waited, began = stats.wait_s, perf_counter()
        logits = session.append([int(logits.argmax())])
        samples.append((perf_counter() - began, stats.wait_s - waited))
    # The embedding, the last norm, the head and the sampler's first step.
    x = np.ones((1, int(TINY["hidden_size"])), np.float32)  # type: ignore[call-overload]
    head = engine.ops.matrix(plain_weight(np.full((512, x.shape[1]), 1, np.uint16), "BF16"))
    outside = _time(lambda: (engine.ops.linear(x, head), logits.argmax()), 20)
    seconds, waited = (statistics.quantiles([s[i] for s in samples], n=4)[0] for i in (0, 1))
    return seconds, waited, outside
