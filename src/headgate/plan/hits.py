"""How often an expert will be in memory: the engine's cache classes on routes.

Routes come from a recorded trace of the model itself, from the statistics published for
Qwen3.5-397B (see :mod:`headgate.measure.routes`), or are uniform, for random weights. A
few layers stand for all, with their share of the slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from headgate.measure.routes import Trace, generate_trace
from headgate.plan.replay import Counts, Demand, simulate
from headgate.stream import make_policy

Routing = Literal["published", "uniform", "trace"]

LAYERS = 6
PROMPT, CHUNK, SETTLE, DECODE = 256, 256, 48, 96


@dataclass(frozen=True)
class Hits:
    """Expected figures of a cache.

    Attributes:
        rate: share of the experts of generated tokens that are in memory.
        first: share of the misses that the process reads for the first time.
        said: where the routes came from.
        layers: [K + 1], of the layers of generated tokens the share that misses so many
            experts; they come in clusters. As if by chance, one by one, if empty.
    """

    rate: float
    first: float
    said: str
    layers: tuple[float, ...] = ()

    def chances(self, k: int, rate: float | None = None) -> list[float]:
        """[K + 1], how likely it is that so many of ``k`` experts are missing.

        Args:
            rate: another hit rate than this: layers that miss everything, or nothing, are
                mixed in.
        """
        wanted = self.rate if rate is None else rate
        if len(self.layers) != k + 1 or wanted in (0.0, 1.0):
            return [math.comb(k, i) * (1 - wanted) ** i * wanted ** (k - i) for i in range(k + 1)]
        if wanted == self.rate:
            return list(self.layers)
        up = wanted > self.rate
        part = (wanted - self.rate) / ((1.0 if up else 0.0) - self.rate)
        found = [(1 - part) * share for share in self.layers]
        found[0 if up else k] += part
        return found


@lru_cache(maxsize=32)
def routes(routing: Routing, experts: int, k: int, seed: int = 1) -> Trace:
    """int16 [tokens, layers, k]: a prompt, and tokens after it."""
    tokens = PROMPT + SETTLE + DECODE
    if routing == "uniform":
        rng = np.random.default_rng(seed)
        order = rng.random((tokens, LAYERS, experts), np.float32)
        return np.argpartition(order, k - 1, axis=-1)[..., :k].astype(np.int16)
    return generate_trace(tokens, LAYERS, experts, k, seed)


@lru_cache(maxsize=256)
def expected(routing: Routing, experts: int, k: int, share: float) -> Hits:
    """Figures of a cache of ``share`` of all experts, after a prompt."""
    trace = routes(routing, experts, k)
    slots = max(k, round(share * LAYERS * experts))
    said = "uniform routes" if routing == "uniform" else "published statistics"
    if share >= 1:
        return Hits(1.0, 0.0, said)
    wanted, decoded = [], []
    for start in range(0, PROMPT, CHUNK):
        for layer in range(LAYERS):
            ids, uses = np.unique(trace[start : start + CHUNK, layer], return_counts=True)
            keys = [((layer, e), n) for e, n in zip(ids.tolist(), uses.tolist(), strict=True)]
            wanted.append(Demand(layer, CHUNK, keys))
            decoded.append(False)
    for token, by_layer in enumerate(trace[PROMPT:].tolist()):
        for layer, ids in enumerate(by_layer):
            wanted.append(Demand(layer, 1, [((layer, e), 1) for e in sorted(ids)]))
            decoded.append(token >= SETTLE)
    counts = simulate(wanted, slots, make_policy("lfu", slots))
    first = _first(wanted, counts.misses, decoded)
    return Hits(counts.rate(decoded), first, said, clusters(counts, decoded, k))


def clusters(counts: Counts, decoded: Sequence[bool], k: int) -> tuple[float, ...]:
    """[K + 1], share of the layers of generated tokens that miss so many experts."""
    missed = np.array(counts.misses)[np.array(decoded)]
    return tuple((np.bincount(np.minimum(missed, k), minlength=k + 1) / len(missed)).tolist())


def _first(wanted: list[Demand], misses: list[int], decoded: list[bool]) -> float:
    """An expert's first use is a miss, and there is no other first reading."""
    seen: set[tuple[int, int]] = set()
    first = missed = 0
    for demand, count, decoding in zip(wanted, misses, decoded, strict=True):
        new = {key for key, _ in demand.experts} - seen
        seen |= new
        if decoding:
            first += len(new)
            missed += count
    return first / missed if missed else 0.0


def needed(routing: Routing, experts: int, k: int, tokens: int) -> float:
    """Share of a layer's experts that a chunk of ``tokens`` tokens needs."""
    if routing == "uniform":
        return float(1 - (1 - k / experts) ** tokens)
    trace = routes(routing, experts, k)
    chunks = [
        trace[start : start + tokens]
        for start in range(0, max(1, len(trace) - tokens + 1), max(1, tokens // 2))
    ]
    distinct = [
        len(np.unique(chunk[:, layer])) for chunk in chunks for layer in range(trace.shape[1])
    ]
    return float(np.mean(distinct)) / experts
