"""Route traces: which experts each token uses in each layer, like a trained model's.

With random weights routing is close to uniform, which defeats any cache. A trace made
here has the statistics published for Qwen3.5-397B (512 experts) at 4 experts per token:
25 % of a token's experts in a layer are those of the token before, and an LRU cache of
16, 32, 64 or 128 experts per layer holds 49, 59, 68 or 71 % of them.

The model is an LRU stack (Mattson et al., 1970; Spirn, 1976). Each layer keeps its
experts in the order of their last use. A pick first draws a band of that order by
:data:`BANDS`, then an expert of the band, by popularity: Zipf with the exponent
:data:`ZIPF` over a random order of the experts. An LRU cache as large as the first bands
hits as often as they are drawn, so the published rates hold by construction. The
exponent is chosen so that least-frequently-used is within 5 points of LRU, and Belady's
optimum 10 to 16 above it, as on real traces. Bands are counted in tokens, that is in
multiples of experts per token, which carries the model over to other numbers of experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from headgate.errors import UsageError
from headgate.models import ExpertSource, parse_config
from headgate.stream.residency import LRU, Policy, Residency

if TYPE_CHECKING:
    from headgate.engine import Engine

#: int16 [tokens, layers, experts per token]
Trace = npt.NDArray[np.int16]

#: (position in the LRU order, in multiples of experts per token, below which ..., share
#: of picks); the last band takes the rest of the experts.
BANDS = ((1, 0.25), (4, 0.24), (8, 0.10), (16, 0.09), (32, 0.03), (math.inf, 0.29))
ZIPF = 0.6
#: Cache sizes that are replayed, in multiples of experts per token.
CACHE_TOKENS = (4, 8, 16, 32)
MAX_EXPERTS = 1 << 15


def generate_trace(tokens: int, layers: int, experts: int, k: int, seed: int = 0) -> Trace:
    """A trace by the model above, the same for the same arguments.

    Args:
        k: experts per token.

    Raises:
        UsageError: sizes below 1, or k above ``experts``.
    """
    if min(tokens, layers, experts, k) < 1:
        raise UsageError("a trace has at least 1 token, layer, expert, and expert per token")
    if k > experts or experts > MAX_EXPERTS:
        raise UsageError(f"{k} of {experts} experts per token: not k <= experts <= {MAX_EXPERTS}")
    rng = np.random.default_rng([seed, layers, experts, k])
    popularity = np.arange(1, experts + 1) ** -ZIPF
    rarity = rng.permuted(np.tile((1 / popularity).astype(np.float32), (layers, 1)), axis=1)
    # Position 0 is the expert used last.
    stack = rng.permuted(np.tile(np.arange(experts, dtype=np.int16), (layers, 1)), axis=1)
    ends = [min(experts, end * k) for end, _ in BANDS]
    band_of = np.searchsorted(ends, np.arange(experts), side="right")
    edges = _edges(ends)
    trace = np.empty((tokens, layers, k), np.int16)
    for token in range(tokens):
        bands = np.searchsorted(edges, rng.random((layers, k)), side="right")
        # The first of exponential arrivals is a draw by popularity (without replacement).
        arrival = rng.standard_exponential(stack.shape, np.float32)
        arrival *= np.take_along_axis(rarity, stack.astype(np.intp), 1)
        chosen = _choose(arrival, band_of, bands)
        picks = np.take_along_axis(stack, chosen, 1)
        trace[token] = picks
        rest = np.ones(stack.shape, np.bool_)
        np.put_along_axis(rest, chosen, False, 1)
        stack = np.concatenate([picks, stack[rest].reshape(layers, experts - k)], axis=1)
    return trace


def _edges(ends: Sequence[float]) -> npt.NDArray[np.float64]:
    """Cumulative shares of the bands. A band beyond the last expert has no room: what it
    and those behind it would get goes to the last band that has some."""
    sums = np.cumsum([share for _, share in BANDS])
    full = next(i for i, end in enumerate(ends) if end == ends[-1])
    sums[full:] = np.inf
    return sums


def _choose(
    arrival: npt.NDArray[np.float32], band_of: npt.NDArray[np.intp], bands: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """For each layer and pick the first arrival of the pick's band that is not taken;
    of any band when its own is used up. Changes ``arrival``."""
    layers, k = bands.shape
    rows = np.arange(layers)
    chosen = np.empty((layers, k), np.intp)
    for pick in range(k):
        eligible = np.where(band_of == bands[:, pick, None], arrival, np.inf)
        best = eligible.argmin(1)
        empty = np.isinf(eligible[rows, best])
        if empty.any():
            best[empty] = arrival[empty].argmin(1)
        chosen[:, pick] = best
        arrival[rows, best] = np.inf
    return chosen


def trace_for(config: dict[str, Any], tokens: int, k: int | None = None, seed: int = 0) -> Trace:
    """A trace for a model's configuration; ``k`` is the trained number unless given.
    Raises as :func:`generate_trace`."""
    c = parse_config(config)
    experts_per_token = c.num_experts_per_tok if k is None else k
    return generate_trace(tokens, len(c.moe_layers), c.num_experts, experts_per_token, seed)


# Files ------------------------------------------------------------------------


def save_trace(path: Path, trace: Trace, experts: int) -> None:
    """Write a trace as ``.npz``: the array ``trace``, and ``about`` in JSON."""
    about = json.dumps({"experts": experts, "bands": BANDS[:-1], "zipf": ZIPF})
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, trace=trace, about=np.array(about))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None


def load_trace(path: Path) -> Trace:
    """Read what :func:`save_trace` wrote, or any ``.npz`` with an int16 ``trace``.

    Raises:
        UsageError: the file is missing or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            trace = found["trace"]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # np.load raises what its parts raise: zipfile, zlib, struct, ...
        raise UsageError(f"{path} is not a route trace") from None
    if trace.dtype != np.int16 or trace.ndim != 3 or trace.size == 0 or trace.min() < 0:
        raise UsageError(f"{path} holds no int16 [tokens, layers, experts per token]")
    return cast(Trace, trace)


# Statistics -------------------------------------------------------------------


@dataclass(frozen=True)
class RouteStatistics:
    """Figures of a trace.

    Attributes:
        overlap: share of a token's experts that the token before used in the same layer.
        hit_rates: slots per layer -> share of picks that an LRU cache of them holds.
        skipped: tokens at the beginning that fill the caches and are not counted.
    """

    tokens: int
    layers: int
    experts: int
    experts_per_token: int
    overlap: float
    hit_rates: dict[int, float]
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def describe(self) -> str:
        """One line."""
        rates = ", ".join(f"{rate:.1%} with {slots}" for slots, rate in self.hit_rates.items())
        return (
            f"{self.tokens} tokens x {self.layers} layers x {self.experts_per_token} of "
            f"{self.experts} experts; {self.overlap:.1%} shared with the token before; an LRU "
            f"cache holds {rates} slots per layer (without the first {self.skipped} tokens)"
        )


def statistics(trace: Trace, experts: int) -> RouteStatistics:
    """Overlap of adjacent tokens, and LRU hit rates once the caches are warm."""
    tokens, layers, k = trace.shape
    sizes = [k * n for n in CACHE_TOKENS if k * n <= experts]
    skip = tokens // 4
    rates = {slots: replay(trace, slots, skip=skip) for slots in sizes}
    return RouteStatistics(tokens, layers, experts, k, overlap(trace), rates, skip)


def overlap(trace: Trace) -> float:
    """Mean share of a token's experts that the token before used in the same layer."""
    if len(trace) < 2:
        return 0.0
    same = trace[1:, :, :, None] == trace[:-1, :, None, :]
    return float(same.any(-1).mean())


def replay(
    trace: Trace,
    slots: int,
    policy: Callable[[], Policy] = LRU,
    shared: bool = False,
    skip: int = 0,
) -> float:
    """Hit rate of the engine's own cache classes on a trace, used as the engine uses them.

    Args:
        slots: experts in the cache: of each layer, or of all of them if ``shared``. A
            layer that needs more than there are goes through them in turns.
        policy: makes the policy of a cache.
        skip: tokens at the beginning that are not counted.
    """
    layers = trace.shape[1]
    caches = [Residency(slots, policy()) for _ in range(1 if shared else layers)]
    hits = total = 0
    for token, routes in enumerate(trace.tolist()):
        for cache in caches:
            cache.advance()
        for layer, experts in enumerate(routes):
            cache = caches[0 if shared else layer]
            found = _use(cache, [(layer, expert) for expert in experts])
            if token >= skip:
                hits += found
                total += len(experts)
    return hits / total if total else 0.0


def _use(cache: Residency, keys: list[tuple[int, int]]) -> int:
    """One layer of one token: hits are pinned first, then misses are placed."""
    missing = [key for key in keys if cache.hit(key) is None]
    hits = len(keys) - len(missing)
    for key in missing:
        if cache.place(key) is None:  # every slot is in use: multiply, then go on
            for other in keys:
                cache.unpin(other)
            cache.place(key)
    for key in keys:
        cache.unpin(key)
    return hits


# The engine on a trace ----------------------------------------------------------


class TracedExperts:
    """An :class:`ExpertSource` that asks another one for a trace's experts.

    Each token of each layer gets the next row of the trace in place of what its router
    chose, with the router's weights; the trace starts again at its end. Everything else
    is the other source's.

    Raises:
        UsageError: the trace has other layers or experts per token than the model; from
            the first request.
    """

    def __init__(self, source: ExpertSource, trace: Trace, layers: Sequence[int]) -> None:
        if trace.shape[1] != len(layers):
            raise UsageError(
                f"the route trace has {trace.shape[1]} layers, the model {len(layers)}"
            )
        self._source, self._trace = source, trace.astype(np.int32)
        self._index_of = {layer: i for i, layer in enumerate(layers)}
        self._next = [0] * len(layers)

    def restart(self) -> None:
        """Begin again with the first token of the trace."""
        self._next = [0] * len(self._next)

    def request(self, layer: int, ids: npt.NDArray[np.int32]) -> Any:
        """See :meth:`ExpertSource.request`."""
        tokens, k = ids.shape
        if k != self._trace.shape[2]:
            raise UsageError(
                f"the route trace has {self._trace.shape[2]} experts per token, the model {k}"
            )
        index = self._index_of[layer]
        rows = (self._next[index] + np.arange(tokens)) % len(self._trace)
        self._next[index] += tokens
        return self._source.request(layer, np.ascontiguousarray(self._trace[rows, index]))

    def compute(self, request: Any, x: Any, weights: Any, base: Any) -> Any:
        """See :meth:`ExpertSource.compute`."""
        return self._source.compute(request, x, weights, base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


@contextmanager
def routed_by(engine: Engine, trace: Trace) -> Iterator[TracedExperts]:
    """Inside, the engine's sessions follow ``trace`` from its beginning instead of the
    router.

    Raises:
        UsageError: the trace does not fit the model.
    """
    if trace.max() >= engine.config.num_experts:
        raise UsageError(
            f"the route trace has expert {trace.max()}, the model {engine.config.num_experts}"
        )
    source = engine.experts
    traced = TracedExperts(source, trace, engine.config.moe_layers)
    engine.experts = traced  # type: ignore[assignment]
    try:
        yield traced
    finally:
        engine.experts = source
