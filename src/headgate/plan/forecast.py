"""The forecast: one formula for a token, one for a prompt, an interval around both.

**A token.** Its layers follow one another, and nothing of a layer can begin before the
layer below is done::

    token = fixed + dense + state + layers x experts

    fixed   Python, dispatch and threads: per token, per layer, per layer that has to wait,
            per expert
    dense   weights that all tokens need / rate of products of one token, by bits
    state   recurrent state, keys and values / memory bandwidth
    experts of K experts m are missing, as often as in the simulation of the cache:
            reads  = T(m records) by the cost model of the drive
            busy   = shared expert and the K - m experts in memory, multiplied meanwhile
            layer  = max(busy + m x product, reads + product) + checksums + m x handling

since each missing expert is multiplied as it arrives, the last one after the last read.

**A prompt** goes through in chunks, which need each expert once. The same with rates of
products of many tokens, and m = the distinct experts of the chunk that are not in memory.

**The interval** holds 90 % of what may be, if errors are as they are estimated: that of
the drive's and the memory's speed, each for its share of the time, that of the hit rate,
and :data:`MODEL_ERROR` of the formula itself.

Every coefficient is a rate or a time that was measured on the machine: by itself, or in
the engine on a small model made for it (:mod:`headgate.plan.in_engine`). None was fitted to
runs of a model that is planned for. ``benchmarks/planning.py`` compares with such runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from headgate.plan.hits import Hits, Routing, expected, needed
from headgate.plan.machine import Machine
from headgate.plan.model import Model
from headgate.stream import StreamOptions, tuned
from headgate.stream.tuning import PAGE

#: Relative standard error of the formula: work that no term stands for.
MODEL_ERROR = 0.08
#: Standard error of a hit rate by where the routes came from, in points.
HIT_ERROR = {"published statistics": 0.06, "uniform routes": 0.01, "a trace of this model": 0.03}
NORMAL_90 = 1.645
#: Tokens of context that a forecast assumes unless told.
LENGTH = 512


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with a probability of 90 %."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, error: float) -> Interval:
        """A relative standard ``error``, as the standard deviation of the logarithm."""
        spread = math.exp(NORMAL_90 * error)
        return cls(value, value / spread, value * spread)

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Setting:
    """How a model is run.

    Attributes:
        share: of all experts that the cache holds.
        chunk: tokens of a prompt that are processed together.
    """

    bits: int
    k: int
    share: float
    chunk: int
    length: int = LENGTH
    routing: Routing = "published"


@dataclass(frozen=True)
class Seconds:
    """Of one token, by what it was spent on.

    Attributes:
        drive: waiting for reads.
        memory: reading weights and state from memory.
        arithmetic: products beyond that.
        fixed: everything else.
    """

    drive: float
    memory: float
    arithmetic: float
    fixed: float

    @property
    def total(self) -> float:
        return self.drive + self.memory + self.arithmetic + self.fixed

    def to_dict(self) -> dict[str, float]:
        """For JSON."""
        return dict(vars(self))


class Forecast:
    """Speeds of a model on a machine in one setting.

    Args:
        hits: known hits; expected ones unless given.
    """

    def __init__(
        self, model: Model, machine: Machine, setting: Setting, hits: Hits | None = None
    ) -> None:
        self.model, self.machine, self.setting = model, machine, setting
        layout = model.layout(setting.bits)
        self.record_bytes = layout.prefix_bytes(setting.bits)
        self.hits = hits or expected(
            setting.routing, model.experts, setting.k, round(setting.share, 3)
        )
        self._weights = layout.format.parameters
        options = tuned(StreamOptions(), machine.drive, self.record_bytes, setting.k)
        self._depth = options.depth
        pieces = -(-self.record_bytes // options.chunk_bytes)
        self._pieces = pieces
        self._piece = -(-self.record_bytes // pieces // PAGE) * PAGE

    # Reads ----------------------------------------------------------------------

    def read_s(self, records: float) -> float:
        """Of ``records`` records that are asked for together."""
        return self.machine.drive.seconds(records * self._pieces, self._piece, self._depth)

    @property
    def bytes_per_token(self) -> float:
        """Read for a generated token."""
        used = self.model.moe_layers * self.setting.k
        return used * (1 - self.hits.rate) * self.record_bytes

    # Decode ---------------------------------------------------------------------

    @cached_property
    def token(self) -> Seconds:
        """A generated token."""
        return self._token(self.hits.rate)

    def _token(self, rate: float) -> Seconds:
        m, r = self.model, self.machine.rates
        k, dense = self.setting.k, m.dense
        layers = m.layers
        product = self._weights / r.experts[self.setting.bits][1]
        shared = dense.shared / max(1, m.moe_layers) / r.dense[8][1]
        wait = stopped = 0.0
        for missing, chance in enumerate(self.hits.chances(k, rate)):
            busy = shared + (k - missing) * product
            done = max(busy + missing * product, self.read_s(missing) + min(missing, 1) * product)
            wait += chance * (done - busy - missing * product)
            stopped += chance * min(missing, 1)
        missed = k * (1 - rate)
        checks = missed * self.hits.first * self.record_bytes / r.crc_bytes_per_s
        fixed = r.token_s + layers * r.layer_s
        fixed += m.moe_layers * (k * r.hit_s + stopped * r.wake_s + missed * r.miss_s + checks)
        products = dense.coded / r.dense[8][1] + dense.plain / r.dense[16][1]
        products += m.moe_layers * k * product
        delta = m.state_fixed * r.delta[1]
        attention = 2 * self.setting.length * m.state_per_token / self.machine.memory_bytes_per_s
        nbytes = dense.token_bytes + m.moe_layers * k * self.record_bytes
        nbytes += 2 * m.state_fixed + self.setting.length * m.state_per_token
        work = products + delta + attention
        memory = min(work, nbytes / self.machine.memory_bytes_per_s)
        return Seconds(m.moe_layers * wait, memory, work - memory, fixed)

    @property
    def decode(self) -> Interval:
        """Generated tokens per second."""
        return Interval.around(1 / self.token.total, self._error(self.token))

    def _error(self, spent: Seconds) -> float:
        step = HIT_ERROR[self.hits.said]
        more = self._token(min(1.0, self.hits.rate + step)).total
        less = self._token(max(0.0, self.hits.rate - step)).total
        hits = abs(math.log(less / more)) / 2 if 0 < self.hits.rate < 1 else 0.0
        return self._combined(spent, hits)

    def _combined(self, spent: Seconds, hits: float) -> float:
        machine, whole = self.machine, spent.total
        return math.hypot(
            MODEL_ERROR,
            machine.drive_spread * spent.drive / whole,
            machine.memory_spread * (spent.memory + spent.arithmetic) / whole,
            hits,
        )

    # Prompts --------------------------------------------------------------------

    def prompt_seconds(self, tokens: int) -> Seconds:
        """A prompt of ``tokens`` tokens after another one: the cache is full."""
        parts = []
        while tokens > 0:
            parts.append(self._chunk(min(tokens, self.setting.chunk)))
            tokens -= self.setting.chunk
        return Seconds(*(sum(getattr(p, name) for p in parts) for name in vars(parts[0])))

    def _chunk(self, tokens: int) -> Seconds:
        m, r, s = self.model, self.machine.rates, self.setting
        distinct = needed(s.routing, m.experts, s.k, tokens) * m.experts
        # A chunk that needs nearly all experts finds of them what the cache holds.
        missing = distinct * (1 - min(1.0, s.share))
        each = tokens * s.k / distinct
        product = each * self._weights / rate_for(r.experts[s.bits], each)
        eight, sixteen = rate_for(r.dense[8], tokens), rate_for(r.dense[16], tokens)
        shared = m.dense.shared / max(1, m.moe_layers) * tokens / eight
        busy = shared + (distinct - missing) * product
        reads = self.read_s(missing) + min(missing, 1) * product
        wait = max(0.0, reads - busy - missing * product)
        head = m.dense.head  # of the last token alone
        coded = tokens * (m.dense.coded - head) + head
        work = coded / eight + tokens * m.dense.plain / sixteen
        work += m.moe_layers * distinct * product
        work += tokens * m.state_fixed * r.delta[64 if tokens >= 32 and 64 in r.delta else 1]
        checks = missing * self.record_bytes / r.crc_bytes_per_s
        fixed = r.token_s + m.layers * r.layer_s
        misses = min(missing, 1) * r.wake_s + missing * r.miss_s
        fixed += m.moe_layers * (distinct * r.hit_s + misses + checks)
        nbytes = m.dense.token_bytes + m.moe_layers * distinct * self.record_bytes
        memory = min(work, nbytes / self.machine.memory_bytes_per_s)
        return Seconds(m.moe_layers * wait, memory, work - memory, fixed)

    def first_token(self, tokens: int) -> Interval:
        """Seconds until the first token of the answer to a prompt."""
        spent = self.prompt_seconds(tokens)
        return Interval.around(spent.total, self._combined(spent, MODEL_ERROR))

    def prompt(self, tokens: int) -> Interval:
        """Tokens per second of a prompt."""
        seconds = self.first_token(tokens)
        return Interval(tokens / seconds.value, tokens / seconds.high, tokens / seconds.low)


def rate_for(rates: Mapping[int, float], tokens: float) -> float:
    """Between the token counts that were measured, by logarithms; beyond them the last."""
    known = sorted(rates)
    if tokens <= known[0]:
        return rates[known[0]]
    for low, high in pairwise(known):
        if tokens <= high:
            part = math.log(tokens / low) / math.log(high / low)
            return math.exp((1 - part) * math.log(rates[low]) + part * math.log(rates[high]))
    return rates[known[-1]]
