"""What a generated token takes inside the engine, on a model of ordinary width.

A product timed by itself is faster than the same one between others, and Python that runs
alone finds its data in the cache. So the rates of single tokens, and what a layer takes
besides its products, come from a running engine: on four layers with few experts, made for
the purpose and removed, large enough that no cache holds what a token reads.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from headgate.engine import Engine
from headgate.measure.synth import SynthOptions, synth
from headgate.measure.timed_ops import TimedOps, timed
from headgate.ops import Ops
from headgate.plan.find import from_store
from headgate.plan.model import Model
from headgate.store import Store
from headgate.stream import ExpertStream, StreamOptions

BITS = (2, 3, 4, 8)
PROMPT, WARM_UP, TOKENS = 128, 8, 40
#: Of the experts in memory, where some are to be missing.
SOME = 0.7
#: Each setting twice, some ten seconds apart.
ROUNDS = 2
#: Four layers, one of them with full attention.
SHAPE = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 16,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class InEngine:
    """Figures of single tokens.

    Attributes:
        dense: weights of 8-bit projections multiplied per second.
        experts: bits -> weights of routed experts multiplied per second.
        layer_s, hit_s, wake_s, miss_s: see :class:`headgate.plan.calibrate.Calibration`.
    """

    dense: float
    experts: dict[int, float]
    layer_s: float
    hit_s: float
    wake_s: float
    miss_s: float


@dataclass(frozen=True)
class _Token:
    """Seconds, and experts that were missing: medians over tokens."""

    projections: float
    experts: float
    waiting: float
    mixers: float
    misses: float
    whole: float

    @property
    def rest(self) -> float:
        return self.whole - self.projections - self.experts - self.waiting - self.mixers


def measure(threads: int | None = None) -> InEngine:
    """Measure now; takes some twenty seconds, 400 MB of memory and of the temporary folder."""
    with tempfile.TemporaryDirectory(prefix="headgate-") as folder:
        path = synth(Path(folder) / "model.headgate", dict(SHAPE), SynthOptions(expert_bits=8)).out
        store, model = Store.open(path), from_store(path)
        trained = model.experts_per_token
        rounds = []
        for _ in range(ROUNDS):
            at = {bits: _token(store, threads, trained, bits) for bits in BITS}
            few = _token(store, threads, 2, 4)
            some = _token(store, threads, trained, 4, share=SOME)
            none = _token(store, threads, trained, 4, share=0)
            rounds.append(_figures(model, at, few, some, none))
    return _mean(rounds)


def _mean(rounds: Sequence[InEngine]) -> InEngine:
    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values)

    return InEngine(
        mean(found.dense for found in rounds),
        {bits: mean(found.experts[bits] for found in rounds) for bits in BITS},
        mean(found.layer_s for found in rounds),
        mean(found.hit_s for found in rounds),
        mean(found.wake_s for found in rounds),
        mean(found.miss_s for found in rounds),
    )


def _figures(
    model: Model, at: Mapping[int, _Token], few: _Token, some: _Token, none: _Token
) -> InEngine:
    layers, k = model.layers, model.experts_per_token
    weights = layers * k * model.layout(4).format.parameters
    dense = model.dense.coded / statistics.median(token.projections for token in at.values())
    rest = statistics.median(token.rest for token in at.values())
    hit = max(1e-7, (at[4].rest - few.rest) / ((k - 2) * layers))
    # What misses add besides the waiting is a line over their number: two points give it.
    few_more, more = (token.whole - token.waiting - at[4].whole for token in (some, none))
    slope = (more - few_more) / max(1.0, none.misses - some.misses)
    miss = min(max(1e-7, slope), max(1e-7, more / none.misses))
    wake = max(1e-7, (more - none.misses * miss) / layers)
    rates = {bits: weights / token.experts for bits, token in at.items()}
    return InEngine(dense, rates, max(1e-6, rest / layers - k * hit), hit, wake, miss)


def _token(store: Store, threads: int | None, k: int, bits: int, share: float = 1) -> _Token:
    """With a cache of ``share`` of the experts."""
    clocks: list[TimedOps] = []

    def instrument(ops: Ops) -> Ops:
        wrapped, found = timed(ops)
        clocks.append(found)
        return wrapped

    options = StreamOptions(lookahead=0, cache=share > 0)
    engine = Engine(
        store,
        threads=threads,
        context=512,
        experts_per_token=k,
        expert_bits=bits,
        stream=options,
        instrument=instrument,
    )
    slots = round((share or 1) * len(store.manifest.layers) * store.manifest.num_experts)
    engine.experts = ExpertStream(store, engine.ops, slots, bits, options)
    session, rng = engine.new_session(), np.random.default_rng(0)
    session.append(rng.integers(0, engine.config.vocab_size, PROMPT).tolist())
    stats, parts, samples = engine.experts.stats, clocks[0].seconds, []

    def now() -> tuple[float, ...]:
        mixers = parts["attention"]
        return parts["projections"], stats.compute_s, stats.wait_s, mixers, stats.misses

    for token in rng.integers(0, engine.config.vocab_size, WARM_UP + TOKENS).tolist():
        began = perf_counter()
        before = now()
        session.append([token]).argmax()
        spent = [b - a for a, b in zip(before, now(), strict=True)]
        samples.append([*spent, perf_counter() - began])
    return _Token(*(statistics.median(column) for column in zip(*samples[WARM_UP:], strict=True)))
