"""What a replay found: tables, and everything that is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headgate.engine.budget import format_size
from headgate.errors import UsageError
from headgate.measure.report import align
from headgate.plan.replay import (
    BELADY,
    Counts,
    Demand,
    demands,
    policy_for,
    repeat,
    simulate,
)
from headgate.plan.trace_file import Trace
from headgate.stream import POLICIES, CostModel, StreamOptions, tuned
from headgate.stream.policies import Key
from headgate.stream.tuning import PAGE

Document = dict[str, Any]

#: Cache sizes that are replayed unless asked for others, besides the recorded one.
SIZES = 8
#: Uses whose distances are measured; of longer traces the first ones.
MOST_DISTANCES = 300_000
MOST_SCALED = 4.0


def report(
    trace: Trace,
    policies: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    drive: CostModel | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Document:
    """Replay a trace over policies and cache sizes.

    Args:
        policies: names; all of them, and the optimum, unless given.
        sizes: experts that the cache holds.
        drive: for tokens per second.

    Raises:
        UsageError: an unknown policy, or a size below 1.
    """
    names = [*POLICIES, BELADY] if policies is None else list(policies)
    unknown = set(names) - {*POLICIES, BELADY}
    if unknown:
        known = ", ".join([*POLICIES, BELADY])
        raise UsageError(f"there is no cache policy {sorted(unknown)[0]!r}; choose from {known}")
    wanted = demands(trace.rows())
    slots = sorted(set(sizes or default_sizes(trace, wanted)))
    if slots[0] < 1:
        raise UsageError("a cache holds at least 1 expert")
    record, cached = trace.about["record_bytes"], trace.about["cache"]
    speed = Speed(trace, drive)
    rows = []
    for name in names:
        for size in slots:
            progress(f"{name}, {size} experts")
            counts = simulate(wanted, size, policy_for(name, size, wanted), cached)
            rows.append(
                {
                    "policy": name,
                    "slots": size,
                    "bytes": size * record,
                    **_figures(counts, trace.decoding, record),
                    "tokens_per_s": speed.tokens_per_s(counts),
                }
            )
    return {
        "about": trace.about,
        "requests": len(trace),
        "prompt_tokens": _tokens(trace, ~trace.decoding),
        "decoded_tokens": _tokens(trace, trace.decoding),
        "damage": trace.damage,
        "recorded": _recorded(trace),
        "policies": names,
        "rows": rows,
        "reuse_distances": reuse_distances(wanted),
        "uses": uses(trace).tolist(),
    }


def default_sizes(trace: Trace, wanted: Sequence[Demand]) -> list[int]:
    """From one token's experts of a layer to every expert that was used."""
    used = len({key for demand in wanted for key, _ in demand.experts})
    least = max(1, max((len(d.experts) for d in wanted if d.tokens == 1), default=1))
    found = np.geomspace(least, max(least + 1, used), SIZES).round().astype(int).tolist()
    return sorted({*found, min(trace.about["slots"], used)})


def _tokens(trace: Trace, chosen: npt.NDArray[np.bool_]) -> int:
    first = trace.columns["layer"] == 0
    return int(trace.columns["tokens"][first & chosen].sum())


def _figures(counts: Counts, decoding: npt.NDArray[np.bool_], record: int) -> Document:
    return {
        "hits": sum(counts.hits),
        "misses": sum(counts.misses),
        "evictions": counts.evictions,
        "hit_rate": counts.rate(),
        "decode_hit_rate": counts.rate(decoding.tolist()),
        "bytes_read": sum(counts.misses) * record,
    }


def _recorded(trace: Trace) -> Document:
    """What the run counted, and whether its replay gives the same."""
    counted = {name: trace.total(name) for name in ("hits", "misses", "evictions")}
    again = repeat(trace)
    replayed = {
        "hits": sum(again.hits),
        "misses": sum(again.misses),
        "evictions": again.evictions,
    }
    return {
        "policy": trace.about["policy"],
        "slots": trace.about["slots"],
        **counted,
        "hit_rate": again.rate(),
        "decode_hit_rate": again.rate(trace.decoding.tolist()),
        "bytes_read": trace.total("bytes"),
        "replayed": replayed,
        "agrees": replayed == counted,
    }


class Speed:
    """Tokens per second of generation with other hits and misses.

    The trace says what a token took besides waiting for reads; the cost model of the drive
    says what waiting each number of misses adds. Reads overlap with the products of their
    layer. The waiting is scaled, by no more than :data:`MOST_SCALED`, so that what was
    missing in the recorded run gives what it waited.
    """

    def __init__(self, trace: Trace, drive: CostModel | None) -> None:
        self._drive = drive
        about, columns = trace.about, trace.columns
        options = StreamOptions(chunk_bytes=about["chunk_bytes"], depth=about["depth"])
        if drive is not None:
            options = tuned(options, drive, about["record_bytes"], 8)
        self._depth = options.depth or 32
        self._pieces = max(1, -(-about["record_bytes"] // (options.chunk_bytes or 1 << 20)))
        self._piece = -(-about["record_bytes"] // self._pieces // PAGE) * PAGE
        self._decoding = np.flatnonzero(trace.decoding & columns["complete"])
        rows = self._decoding
        if not len(rows):
            return
        wait = columns["wait_s"][rows].astype(float)
        self._work = _work(trace, rows)
        self._hidden = float(np.median(columns["compute_s"][rows]))
        self._layers = trace.layers
        expected = sum(self._wait(int(n)) for n in columns["misses"][rows].tolist())
        scale = float(wait.sum()) / expected if expected > 0 else 1.0
        self._scale = min(MOST_SCALED, max(1 / MOST_SCALED, scale))

    def tokens_per_s(self, counts: Counts) -> float | None:
        """None without a cost model, or where nothing was generated."""
        if self._drive is None or not len(self._decoding):
            return None
        found = [counts.misses[i] for i in self._decoding.tolist()]
        wait = self._scale * sum(self._wait(n) for n in found) / len(found)
        return 1 / (self._work + self._layers * wait)

    def _wait(self, misses: int) -> float:
        if self._drive is None or not misses:
            return 0.0
        reads = self._drive.seconds(misses * self._pieces, self._piece, self._depth)
        return max(0.0, reads - self._hidden)


def _work(trace: Trace, rows: npt.NDArray[np.intp]) -> float:
    """Median seconds of a generated token without waiting for reads, from the beginning of
    one to that of the next."""
    columns, layers = trace.columns, trace.layers
    first = rows[columns["layer"][rows] == 0]
    whole = first[first + layers < len(trace)]
    # Those that another generated token follows at once.
    whole = whole[np.isin(whole + layers, first)]
    if not len(whole):
        seconds, wait = (columns[name][rows].astype(float) for name in ("seconds", "wait_s"))
        return float(layers * np.median(seconds - wait))
    waited = np.concatenate([[0.0], np.cumsum(columns["wait_s"].astype(float))])
    start = columns["start_s"]
    took = start[whole + layers] - start[whole] - (waited[whole + layers] - waited[whole])
    return float(np.median(took))


# Locality ---------------------------------------------------------------------


def reuse_distances(wanted: Sequence[Demand]) -> list[Document]:
    """How many different experts, of all layers, were used since the last use of the same
    one (the stack distance of Mattson et al., 1970): an LRU cache of more slots than that
    has it. Shares of all uses by powers of two; first uses have none."""
    order = [key for demand in wanted for key, _ in demand.experts][:MOST_DISTANCES]
    tree = _Fenwick(len(order))
    last: dict[Key, int] = {}
    bins: dict[int, int] = {}
    first = 0
    for time, key in enumerate(order):
        before = last.get(key)
        if before is None:
            first += 1
        else:
            distance = tree.sum(time) - tree.sum(before + 1)
            bins[distance.bit_length()] = bins.get(distance.bit_length(), 0) + 1
            tree.add(before, -1)
        tree.add(time, 1)
        last[key] = time
    total = max(1, len(order))
    found = [
        {"label": f"< {1 << n}", "below": 1 << n, "share": bins.get(n, 0) / total}
        for n in range(max(bins, default=0) + 1)
    ]
    return [*found, {"label": "first use", "below": None, "share": first / total}]


class _Fenwick:
    """Sums of prefixes in logarithmic time (Fenwick, 1994)."""

    def __init__(self, size: int) -> None:
        self._tree = [0] * (size + 1)

    def add(self, at: int, value: int) -> None:
        """Add to element ``at``."""
        at += 1
        while at < len(self._tree):
            self._tree[at] += value
            at += at & -at

    def sum(self, end: int) -> int:
        """Of elements [0, end)."""
        total = 0
        while end > 0:
            total += self._tree[end]
            end -= end & -end
        return total


def uses(trace: Trace) -> npt.NDArray[np.int64]:
    """int64 [layers, experts]: tokens that used each expert."""
    counts = np.diff(trace.offsets["experts"])
    layer = np.repeat(trace.columns["layer"].astype(np.int64), counts)
    flat = layer * trace.experts + trace.columns["experts"]
    found = np.bincount(flat, minlength=trace.layers * trace.experts)
    return found.reshape(trace.layers, trace.experts)


# Text -------------------------------------------------------------------------


def text(document: Document) -> str:
    """The tables of :func:`report`."""
    about, run = document["about"], document["recorded"]
    lines = [
        f"{about['model_type']}, {len(about['layers'])} layers of {about['experts']} experts at "
        f"{about['bits']} bits, {format_size(about['record_bytes'])} each; "
        f"{document['prompt_tokens']} prompt tokens, {document['decoded_tokens']} generated",
        f"recorded with {run['policy']} and {run['slots']} slots: hit rate "
        f"{run['hit_rate']:.1%} ({run['decode_hit_rate']:.1%} of generated tokens), "
        f"{run['hits']} hits, {run['misses']} misses, {run['evictions']} evictions; "
        + ("replayed the same" if run["agrees"] else f"REPLAYED OTHERWISE: {run['replayed']}"),
    ]
    if document["damage"]:
        lines.append(f"the trace is {document['damage']}; what is before that was replayed")
    names = document["policies"]
    speeds = any(row["tokens_per_s"] is not None for row in document["rows"])
    table = [["slots", "cache", *(f"{n} %" for n in names), *(f"{n} tok/s" for n in names)]]
    by = {(row["policy"], row["slots"]): row for row in document["rows"]}
    for slots in sorted({row["slots"] for row in document["rows"]}):
        found = [by[name, slots] for name in names]
        cells = [f"{100 * row['decode_hit_rate']:.1f}" for row in found]
        cells += [_speed(row["tokens_per_s"]) for row in found]
        table.append([str(slots), format_size(found[0]["bytes"]), *cells])
    if not speeds:
        table = [row[: 2 + len(names)] for row in table]
        lines.append("no tokens/s: nothing was generated, or the drive has no `headgate probe`")
    head = "generated tokens: experts found in memory, nothing read ahead"
    far = ", ".join(
        f"{d['label']}: {d['share']:.1%}" for d in document["reuse_distances"] if d["share"]
    )
    return "\n".join(lines) + f"\n\n{head}\n{align(table)}\n\nreuse distances: {far}"


def _speed(found: float | None) -> str:
    return "-" if found is None or not math.isfinite(found) else f"{found:.2f}"
