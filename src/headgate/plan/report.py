"""A plan as text."""

from __future__ import annotations

from headgate.engine.budget import format_size
from headgate.measure.report import align
from headgate.plan.forecast import Interval
from headgate.plan.planner import Plan, Row, limit, sizes

EVIDENCE = {
    "store": "exact",
    "checkpoint": "exact",
    "config": "exact for a bf16 checkpoint",
    "estimate": "experts exact, the rest estimated",
}


def text(plan: Plan) -> str:
    """Head, sizes, forecasts, and what follows from them."""
    blocks = [_head(plan), _sizes(plan), _rows(plan), _verdict(plan)]
    notes = [*plan.model.notes, *plan.machine.notes]
    blocks += ["\n".join(f"note: {note}" for note in notes)] if notes else []
    return "\n\n".join(block for block in blocks if block)


def _head(plan: Plan) -> str:
    m, machine = plan.model, plan.machine
    return "\n".join(
        [
            f"{m.name}: {m.model_type}, {m.moe_layers} of {m.layers} layers with {m.experts} "
            f"experts, {m.experts_per_token} per token",
            f"sizes: {EVIDENCE[m.origin]} ({m.evidence})",
            f"dense weights {format_size(m.dense.nbytes)}, "
            f"state {format_size(m.state_per_token)} per token of context"
            + (f" and {format_size(m.state_fixed)}" if m.state_fixed else "")
            + f"; {plan.context} tokens take {format_size(m.state_bytes(plan.context))}",
            f"machine: {machine.name}, drive "
            f"{machine.drive.bytes_per_second(1 << 20, 32) / 1e9:.2f} GB/s, memory "
            f"{machine.memory_bytes_per_s / 1e9:.1f} GB/s, "
            f"{format_size(machine.memory_bytes)} free",
        ]
    )


def _sizes(plan: Plan) -> str:
    rows = [["bits", "disk", "record", "experts' bytes per token"]]
    for bits in sorted({row.bits for row in plan.rows}):
        found = sizes(plan.model, bits)
        rows.append(
            [
                str(bits),
                format_size(found["disk_bytes"]),
                format_size(found["record_bytes"]),
                format_size(found["expert_bytes_per_token"]),
            ]
        )
    return align(rows)


def _rows(plan: Plan) -> str:
    prompt = plan.wish.prompt
    rows = [
        ["bits", "experts", "budget", "hit rate", "read/token", "decode tok/s", "prompt tok/s",
         f"first of {prompt}, s", "limit", ""],
    ]  # fmt: skip
    for row in plan.rows:
        label = [str(row.bits), str(row.k), format_size(row.budget)]
        lossy = "lossy" if row.lossy else ""
        if row.forecast is None:
            needs = f"needs {format_size(row.smallest)}"
            rows.append([*label, "", "", "does not fit", "", "", needs, lossy])
            continue
        f = row.forecast
        rows.append(
            [
                *label,
                f"{f.hits.rate:.0%}",
                format_size(f.bytes_per_token),
                interval(f.decode),
                interval(f.prompt(prompt)),
                interval(f.first_token(prompt)),
                limit(f),
                lossy,
            ]
        )
    said = {row.forecast.hits.said for row in plan.rows if row.forecast is not None}
    about = "forecast, with what holds it nine times of ten"
    return f"{about}; hit rates from {', '.join(sorted(said)) or 'nothing'}\n" + align(rows)


def interval(found: Interval) -> str:
    """``value (low..high)``."""
    return f"{_number(found.value)} ({_number(found.low)}..{_number(found.high)})"


def _number(value: float) -> str:
    """Three significant digits, never with an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(plan: Plan) -> str:
    best = plan.best
    if best is None or best.forecast is None:
        least = min((row.smallest for row in plan.rows if row.smallest), default=0)
        return f"nothing fits; the smallest budget that works is {format_size(least)}"
    lines = [_spent(best)]
    what, gain, lossy = plan.changes[0]
    kind = ", but lossy" if lossy else ""
    lines.append(f"what would help most: {what}, {gain:.2f} times as fast{kind}")
    if lossy:
        what, gain, _ = next(change for change in plan.changes if not change[2])
        lines.append(f"of what loses nothing: {what}, {gain:.2f} times as fast")
    if plan.command:
        lines += ["recommended:", *(f"  {line}" for line in plan.command)]
    else:
        lines.append(f"recommended budget: {format_size(best.budget)}")
    return "\n".join(lines)


def _spent(row: Row) -> str:
    assert row.forecast is not None
    spent = row.forecast.token
    parts = ", ".join(f"{name} {1e3 * s:.1f} ms" for name, s in spent.to_dict().items())
    return (
        f"at {row.bits} bits, {row.k} experts per token and {format_size(row.budget)} a token "
        f"takes {1e3 * spent.total:.1f} ms: {parts}"
    )
