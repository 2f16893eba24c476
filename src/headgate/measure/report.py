"""A benchmark's report as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headgate.engine.budget import format_size

Document = dict[str, Any]


def text(document: Document) -> str:
    """The tables of a report, from :meth:`headgate.measure.bench.Report.to_dict`."""
    runs = document["runs"]
    blocks = [head(document), table(SPEED, runs), table(ROOFLINE, runs), table(READS, runs)]
    blocks += [_split(runs), document["definition"]]
    if document["ablations"]:
        blocks.append(ablations(document["ablations"]))
    blocks += ["note: " + note for note in document["notes"]]
    return "\n\n".join(blocks)


def head(document: Document) -> str:
    """What was measured, on what, how."""
    m, d, s = document["machine"], document["drive"], document["store"]
    first = document["runs"][0]
    drive = ", ".join(str(d[k]) for k in ("device", "model", "file_system") if k in d)
    tokens = "the model's own" if document["options"]["greedy"] else "random"
    lines = [
        f"{m['cpu']}, {first['threads']} of {m['cores']} cores ({', '.join(m['isa'])}), "
        f"memory {format_size(m['memory_bytes'])}; {m['system']}",
        f"{drive}; {'direct' if first['direct'] else 'buffered'} reads through {first['backend']}",
        f"{s['path']}: {s['layers']} layers of {s['experts']} experts at {s['expert_bits']} bits, "
        f"{format_size(s['record_bytes'])} each; dense {format_size(s['dense_bytes'])}",
        f"lossy: {'; '.join(first['lossy']) or 'none'}; decoded tokens: {tokens}",
        f"headgate {document['headgate']}: {' '.join(document['command'])}",
    ]
    return "\n".join(lines)


def _range(run: Document, name: str, digits: int = 2) -> str:
    low, high = run[f"{name}_range"]
    return f"{run[name]:.{digits}f} ({low:.{digits}f}..{high:.{digits}f})"


def _latencies(found: dict[str, float], scale: float = 1.0) -> str:
    return "/".join(f"{found[name] * scale:.3g}" for name in ("p50", "p90", "p99", "max"))


def _records(run: Document) -> str:
    return "; ".join(
        f"{format_size(int(size))}: {_latencies(found, 1e-3)}"
        for size, found in run["record_latency_us"].items()
    )


#: heading -> a run's cell
Columns = dict[str, Any]

LABEL: Columns = {
    "prompt": lambda r: str(r["prompt_tokens"]),
    "gen": lambda r: str(r["generated_tokens"]),
    "budget": lambda r: format_size(r["budget_bytes"]),
    "": lambda r: r["temperature"],
}
SPEED: Columns = {
    "prompt tok/s": lambda r: _range(r, "prefill_tokens_per_s", 1),
    "decode tok/s": lambda r: _range(r, "decode_tokens_per_s"),
    "first token s": lambda r: _range(r, "ttft_s"),
    "token ms p50/p90/p99/max": lambda r: _latencies(r["token_latency_ms"]),
    "peak memory": lambda r: format_size(r["peak_memory_bytes"]),
}
ROOFLINE: Columns = {
    "of roofline": lambda r: _range(r, "roofline_ratio"),
    "if overlapped": lambda r: f"{r['overlapped_ratio']:.2f}",
    "drive + memory ms": lambda r: (
        f"{1e3 * r['roofline']['drive_s']:.1f} + {1e3 * r['roofline']['memory_s']:.1f}"
    ),
    "measured ms": lambda r: f"{1e3 * r['roofline']['measured_s']:.1f}",
    "drive GB/s": lambda r: f"{r['roofline']['drive_bytes_per_s'] / 1e9:.2f}",
    "memory GB/s": lambda r: f"{r['roofline']['memory_bytes_per_s'] / 1e9:.1f}",
    "hit rate": lambda r: f"{r['hit_rate']:.1%}",
    "read per token": lambda r: format_size(r["bytes_read_per_token"]),
}
READS: Columns = {
    "read ms p50/p90/p99/max": lambda r: _latencies(r["read_latency_us"], 1e-3),
    "bytes per read": lambda r: format_size(r["bytes_per_read"]),
    "max depth": lambda r: str(r["max_queue_depth"]),
    "stalls per layer": lambda r: f"{r['stalls_per_layer']:.2f}",
    "record ms p50/p90/p99/max": _records,
}


def table(columns: Columns, runs: Sequence[Document]) -> str:
    """One line for each run."""
    columns = {**LABEL, **columns}
    return align([list(columns), *([cell(run) for cell in columns.values()] for run in runs)])


def align(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _split(runs: Sequence[Document]) -> str:
    parts = list(runs[0]["time_split_s"])
    rows = [[*LABEL, *(f"{part} ms" for part in parts)]]
    for run in runs:
        cells = [cell(run) for cell in LABEL.values()]
        rows.append(cells + [f"{1e3 * run['time_split_s'][part]:.2f}" for part in parts])
    return "where a token's time goes\n" + align(rows)


def ablations(found: Sequence[Document]) -> str:
    """What each mechanism is worth."""
    rows = [["mechanism", "decode x", "low..high", "prompt x", "low..high"]]
    for each in found:
        row = [each["mechanism"]]
        for kind in ("decode_worth", "prefill_worth"):
            worth = each[kind]
            row += [f"{worth['median']:.2f}", f"{worth['low']:.2f}..{worth['high']:.2f}"]
        rows.append(row)
    rounds = found[0]["rounds"]
    return f"speed with a mechanism over speed without it, {rounds} rounds\n" + align(rows)
