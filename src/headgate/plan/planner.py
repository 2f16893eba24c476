"""Settings worth looking at, what each would give, and which to take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import headgate
from headgate.engine.budget import DEFAULT_SHARE, Budget, plan_budget
from headgate.errors import BudgetTooSmall, UsageError
from headgate.plan.forecast import LENGTH, Forecast, Setting
from headgate.plan.hits import Hits, Routing, clusters
from headgate.plan.machine import Machine
from headgate.plan.model import DEFAULT_BITS, Model
from headgate.plan.replay import Demand, demands, policy_for, simulate
from headgate.plan.trace_file import Trace

GIB, MIB = 1 << 30, 1 << 20
DEFAULT_CONTEXT = 8192
BUDGETS = tuple(n * GIB for n in (2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512))
#: Budgets of the table unless asked for others.
MOST_BUDGETS = 5
#: More memory is recommended only for more than this.
WORTH = 0.05
#: Of a process of the engine that has loaded nothing yet, its tokenizer apart; that takes
#: about so much for each token of its vocabulary.
PROCESS_BYTES, TOKEN_BYTES = 50 * MIB, 1 << 10


@dataclass(frozen=True)
class Wish:
    """What to plan for; None is what is sensible.

    Attributes:
        prompt: tokens of the prompt whose first token is forecast.
        trace: hit rates come from these routes of the model itself.
    """

    budgets: Sequence[int] | None = None
    bits: Sequence[int] | None = None
    experts_per_token: Sequence[int] | None = None
    context: int | None = None
    prompt: int = LENGTH
    trace: Trace | None = None


@dataclass(frozen=True)
class Row:
    """One setting: what it is, and what it would give.

    Attributes:
        lossy: it changes what the model computes.
        division: of the budget; None if it cannot work.
        smallest: the smallest budget that works, where this one does not.
    """

    budget: int
    bits: int
    k: int
    lossy: tuple[str, ...]
    division: Budget | None
    smallest: int = 0
    forecast: Forecast | None = None

    def to_dict(self, prompt: int) -> dict[str, Any]:
        """For JSON."""
        about = {
            "budget_bytes": self.budget,
            "expert_bits": self.bits,
            "experts_per_token": self.k,
            "lossy": list(self.lossy),
            "fits": self.forecast is not None,
        }
        f, division = self.forecast, self.division
        if f is None or division is None:
            return {**about, "smallest_budget_bytes": self.smallest}
        spent = f.token
        return {
            **about,
            "slots": division.slots,
            "cached_share": f.setting.share,
            "prompt_chunk": division.prompt_chunk,
            "hit_rate": f.hits.rate,
            "hit_rate_from": f.hits.said,
            "bytes_read_per_token": f.bytes_per_token,
            "decode_tokens_per_s": f.decode.to_dict(),
            "prompt_tokens_per_s": f.prompt(prompt).to_dict(),
            "first_token_s": f.first_token(prompt).to_dict(),
            "token_s": spent.to_dict(),
            "limit": limit(f),
        }


@dataclass
class Plan:
    """Everything that is said of a model on a machine.

    Attributes:
        best: the recommended row; None if nothing fits.
        changes: what would make that row faster: (what, times as fast, lossy).
    """

    model: Model
    machine: Machine
    wish: Wish
    context: int
    rows: list[Row]
    best: Row | None
    changes: list[tuple[str, float, bool]] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """Command lines to type; none for what the engine cannot run."""
        if self.best is None or not self.model.runs:
            return []
        m, row = self.model, self.best
        if m.origin == "store":
            store, lines = m.name, []
        else:
            store = f"{m.name.lower()}.headgate"
            bits = "" if m.stored_bits(row.bits) == DEFAULT_BITS else f" --expert-bits {row.bits}"
            lines = [f"headgate convert {m.name} {store}{bits}"]
        return [*lines, f'headgate run {store} "..." --memory {_size(row.budget)}']

    def to_dict(self) -> dict[str, Any]:
        """For JSON; sizes in bytes, times in seconds."""
        m, bits = self.model, self.model.bits
        return {
            "headgate": headgate.__version__,
            "model": {
                "name": m.name,
                "model_type": m.model_type,
                "runs": m.runs,
                "sizes_from": m.origin,
                "evidence": m.evidence,
                "exact": m.origin != "estimate",
                "layers": m.layers,
                "moe_layers": m.moe_layers,
                "experts": m.experts,
                "experts_per_token": m.experts_per_token,
                "dense_bytes": m.dense.nbytes,
                "state_fixed_bytes": m.state_fixed,
                "state_bytes_per_token": m.state_per_token,
                "bits": bits,
                "sizes": {str(b): sizes(m, b) for b in m.readable_bits},
                "notes": list(m.notes),
            },
            "machine": self.machine.to_dict(),
            "context": self.context,
            "prompt_tokens": self.wish.prompt,
            "rows": [row.to_dict(self.wish.prompt) for row in self.rows],
            "recommended": None if self.best is None else self.best.to_dict(self.wish.prompt),
            "changes": [
                {"change": what, "times_as_fast": gain, "lossy": lossy}
                for what, gain, lossy in self.changes
            ],
            "command": self.command,
        }


def sizes(model: Model, bits: int) -> dict[str, int]:
    """Bytes at one precision."""
    layout = model.layout(bits)
    record = layout.prefix_bytes(bits)
    return {
        "record_bytes": record,
        "stride": layout.stride,
        "disk_bytes": model.disk_bytes(bits),
        "expert_bytes_per_token": record * model.experts_per_token * model.moe_layers,
    }


def plan(model: Model, machine: Machine, wish: Wish) -> Plan:
    """All settings of a wish.

    Raises:
        UsageError: it asks for what cannot be.
        StoreError: for bits that the store does not have.
    """
    context = min(DEFAULT_CONTEXT, model.max_context) if wish.context is None else wish.context
    if not 1 <= context <= model.max_context:
        raise UsageError(f"context is {context}; the model allows 1..{model.max_context}")
    if not 1 <= wish.prompt <= context:
        raise UsageError(f"a prompt of {wish.prompt} tokens does not fit a context of {context}")
    counts = wish.experts_per_token or _counts(model)
    if any(not 1 <= k <= model.experts for k in counts):
        raise UsageError(f"experts per token are 1..{model.experts}")
    all_bits = wish.bits or [b for b in model.readable_bits if b != 3] or model.readable_bits
    budgets = wish.budgets or sensible_budgets(model, machine, min(all_bits), context)
    known = Known(model, wish.trace)
    rows = [
        make_row(model, machine, budget, bits, k, context, known)
        for bits in all_bits
        for k in counts
        for budget in budgets
    ]
    best = _best(model, rows)
    found = Plan(model, machine, wish, context, rows, best)
    if best is not None:
        found.changes = _changes(found, best, known)
    return found


def _counts(model: Model) -> list[int]:
    trained = model.experts_per_token
    return [trained, trained // 2] if trained >= 4 else [trained]


def sensible_budgets(model: Model, machine: Machine, bits: int, context: int) -> list[int]:
    """Round sizes from the least that works to what the machine has or the model can use."""
    least = _divide(model, 0, context, model.experts_per_token, bits)
    smallest = least if isinstance(least, int) else 0
    pool = model.moe_layers * model.experts * model.layout(bits).prefix_bytes(max(bits, 2))
    most = int(DEFAULT_SHARE * machine.memory_bytes)
    enough = smallest + 2 * pool
    found = [size for size in BUDGETS if smallest <= size <= min(most, enough)]
    if len(found) > MOST_BUDGETS:
        step = (len(found) - 1) / (MOST_BUDGETS - 1)
        found = [found[round(i * step)] for i in range(MOST_BUDGETS)]
    if not found or found[-1] < 0.8 * min(most, enough):
        found.append(max(1, min(most, enough) // MIB) * MIB)
    return found


class Known:
    """Hit rates of one model, by cache: from a trace of it, or from statistics."""

    def __init__(self, model: Model, trace: Trace | None) -> None:
        self.routing: Routing = "uniform" if model.uniform else "published"
        self._demands: list[Demand] = []
        self._found: dict[int, Hits] = {}
        if trace is None:
            return
        if (trace.layers, trace.experts) != (model.moe_layers, model.experts):
            raise UsageError(
                f"the trace has {trace.layers} layers of {trace.experts} experts, the model "
                f"{model.moe_layers} of {model.experts}"
            )
        self._demands = demands(trace.rows())
        self._decoding = trace.decoding.tolist()
        if not any(self._decoding):
            raise UsageError("the trace has no generated tokens")
        self._k = int(trace.offsets["experts"][1] // trace.columns["tokens"][0])

    def hits(self, slots: int, k: int) -> Hits | None:
        """From the trace; None where there is none, or one of other experts per token."""
        if not self._demands or k != self._k:
            return None
        if slots not in self._found:
            counts = simulate(self._demands, slots, policy_for("lfu", slots, self._demands))
            rate, layers = counts.rate(self._decoding), clusters(counts, self._decoding, k)
            self._found[slots] = Hits(rate, 0.0, "a trace of this model", layers)
        return self._found[slots]


def make_row(
    model: Model, machine: Machine, budget: int, bits: int, k: int, context: int, known: Known
) -> Row:
    """One setting."""
    lossy = []
    if k != model.experts_per_token:
        lossy.append(f"experts-per-token {k} (trained {model.experts_per_token})")
    if model.bits is not None and bits != model.bits:
        lossy.append(f"expert-bits {bits} (stored {model.bits})")
    division = _divide(model, budget, context, k, bits)
    if isinstance(division, int):
        return Row(budget, bits, k, tuple(lossy), None, division)
    share = division.slots / (model.moe_layers * model.experts)
    setting = Setting(bits, k, share, division.prompt_chunk, routing=known.routing)
    forecast = Forecast(model, machine, setting, known.hits(division.slots, k))
    return Row(budget, bits, k, tuple(lossy), division, forecast=forecast)


def _divide(model: Model, budget: int, context: int, k: int, bits: int) -> Budget | int:
    """As the engine divides it, or the smallest budget that works.

    The engine counts its own process as it stands; what this one has grown to by planning
    is none of its business.
    """
    resident = PROCESS_BYTES + (0 if model.uniform else TOKEN_BYTES * model.vocab_size)
    layout = model.layout(bits)
    store = SimpleNamespace(
        layout=layout,
        dense_bytes=model.dense.nbytes,
        manifest=SimpleNamespace(layers=range(model.moe_layers), num_experts=model.experts),
    )
    config = model.config or SimpleNamespace(
        state_bytes=model.state_bytes,
        hidden_size=model.hidden_size,
        moe_intermediate_size=model.intermediate_size,
        vocab_size=model.vocab_size,
        # Queries, keys, values and gates of the widest layer are about that.
        activation_width=10 * model.hidden_size + 2 * model.experts,
    )
    try:
        return plan_budget(
            cast(Any, store), cast(Any, config), budget, context, k, bits, resident=resident
        )
    except BudgetTooSmall as error:
        return error.smallest


def limit(forecast: Forecast) -> str:
    """What most of a token's time goes to."""
    spent = forecast.token.to_dict()
    words = {"drive": "drive", "memory": "memory bus", "arithmetic": "arithmetic",
             "fixed": "fixed time"}  # fmt: skip
    return words[max(spent, key=lambda part: spent[part])]


def _best(model: Model, rows: Iterable[Row]) -> Row | None:
    """The fastest that is exact at the store's bits, or at the default's; of those about
    as fast the one with least memory."""
    exact = [row for row in rows if row.forecast is not None and not row.lossy]
    default = [row for row in exact if model.bits is not None or row.bits == DEFAULT_BITS] or exact
    if not default:
        return None
    speed = {id(row): row.forecast.decode.value for row in default if row.forecast is not None}
    top = max(speed.values())
    return min(
        (row for row in default if speed[id(row)] >= top * (1 - WORTH)), key=lambda r: r.budget
    )


def _changes(found: Plan, best: Row, known: Known) -> list[tuple[str, float, bool]]:
    """Times as fast that one change alone would make the recommended setting."""
    model, machine = found.model, found.machine
    assert best.forecast is not None
    base = best.forecast.decode.value
    setting, hits = best.forecast.setting, best.forecast.hits

    def speed(row: Row) -> float:
        return 0.0 if row.forecast is None else row.forecast.decode.value / base

    def other(budget: int = best.budget, bits: int = best.bits, k: int = best.k) -> float:
        return speed(make_row(model, machine, budget, bits, k, found.context, known))

    def on(changed: Machine) -> float:
        return Forecast(model, changed, setting, hits).decode.value / base

    changes = [
        ("a drive twice as fast", on(machine.faster(drive=2)), False),
        ("a memory bus twice as fast", on(machine.faster(memory=2)), False),
        ("cores twice as fast", on(machine.faster(cores=2)), False),
        ("twice the memory budget", other(budget=2 * best.budget), False),
    ]
    fewer = [bits for bits in model.readable_bits if bits < best.bits]
    if fewer:
        changes.append((f"experts at {fewer[-1]} bits", other(bits=fewer[-1]), True))
    if best.k > 1:
        changes.append((f"{best.k // 2} experts per token", other(k=best.k // 2), True))
    return sorted(changes, key=lambda change: -change[1])


def _size(nbytes: int) -> str:
    return f"{nbytes // GIB}G" if nbytes % GIB == 0 else f"{nbytes // MIB}M"
