"""A benchmark's report as one HTML file: tables, and drawings in SVG. Needs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from headgate.measure.report import LABEL, READS, ROOFLINE, SPEED, Columns, head

Document = dict[str, Any]

COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5",
          "#9c6b4e")  # fmt: skip
WIDTH, ROW, LEFT, RIGHT = 860, 26, 200, 90
STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
td, th { padding: .2em .7em; text-align: right; border-bottom: 1px solid #ddd }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto } svg { max-width: 100% }
"""


def page(document: Document) -> str:
    """The whole file, from :meth:`headgate.measure.bench.Report.to_dict`."""
    runs = document["runs"]
    names = [" ".join(cell(run) for cell in LABEL.values()) for run in runs]
    parts = [
        f"<pre>{escape(head(document))}</pre>",
        "<h2>Speed</h2>",
        _table(SPEED, runs),
        _speeds(names, runs),
        "<h2>Roofline</h2>",
        f"<p>{escape(document['definition'])}.</p>",
        _table(ROOFLINE, runs),
        "<h2>Where a token's time goes, milliseconds</h2>",
        _stacks(names, [{k: 1e3 * v for k, v in r["time_split_s"].items()} for r in runs]),
        "<h2>Milliseconds of each token</h2>",
        _lines(names, [[1e3 * s for s in run["token_s"][0]] for run in runs]),
        "<h2>Reads</h2>",
        _table(READS, runs),
    ]
    if document["ablations"]:
        parts += ["<h2>What each mechanism is worth</h2>", _ablations(document["ablations"])]
    parts += [f"<p>Note: {escape(note)}.</p>" for note in document["notes"]]
    raw = escape(json.dumps(document, indent=1))
    parts.append(f"<details><summary>All figures</summary><pre>{raw}</pre></details>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>headgate bench</title>'
        f"<style>{STYLE}</style><h1>headgate bench</h1>{''.join(parts)}</html>\n"
    )


def _table(columns: Columns, runs: Sequence[Document]) -> str:
    columns = {**LABEL, **columns}
    rows = ["".join(f"<th>{escape(name)}</th>" for name in columns)]
    rows += ["".join(f"<td>{escape(cell(r))}</td>" for cell in columns.values()) for r in runs]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'font-family="system-ui" font-size="12">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _bar(x: float, y: float, width: float, color: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{ROW - 8}" '
        f'fill="{color}"><title>{escape(title)}</title></rect>'
    )


def bars(
    names: Sequence[str], values: Sequence[tuple[float, float, float]], reference: float = 0
) -> str:
    """Horizontal bars of (median, low, high) with whiskers; a line at ``reference``."""
    scale = (WIDTH - LEFT - RIGHT) / (max([high for _, _, high in values] + [reference]) or 1)
    parts = []
    for i, (name, (median, low, high)) in enumerate(zip(names, values, strict=True)):
        y = i * ROW
        parts.append(_text(LEFT - 8, y + 15, name, "end"))
        parts.append(_bar(LEFT, y + 2, median * scale, COLORS[0], f"{name}: {median:.4g}"))
        middle = y + 2 + (ROW - 8) / 2
        parts.append(
            f'<path d="M{LEFT + low * scale:.1f} {middle}H{LEFT + high * scale:.1f}" '
            'stroke="#222" stroke-width="2"/>'
        )
        parts.append(_text(LEFT + high * scale + 6, y + 15, f"{median:.3g}"))
    if reference:
        x = LEFT + reference * scale
        parts.append(f'<path d="M{x:.1f} 0V{len(names) * ROW}" stroke="#999"/>')
    return _svg(len(names) * ROW + 4, parts)


def _speeds(names: Sequence[str], runs: Sequence[Document]) -> str:
    parts = []
    for title, key in (("decode", "decode_tokens_per_s"), ("prompt", "prefill_tokens_per_s")):
        values = [(run[key], *run[f"{key}_range"]) for run in runs]
        parts.append(f"<h3>{title}, tokens per second</h3>{bars(names, values)}")
    return "".join(parts)


def _stacks(names: Sequence[str], stacks: Sequence[dict[str, float]]) -> str:
    scale = (WIDTH - LEFT - RIGHT) / (max(sum(stack.values()) for stack in stacks) or 1)
    parts = []
    for i, (name, stack) in enumerate(zip(names, stacks, strict=True)):
        x, y = float(LEFT), i * ROW
        parts.append(_text(LEFT - 8, y + 15, name, "end"))
        for number, (part, value) in enumerate(stack.items()):
            color = COLORS[number % len(COLORS)]
            parts.append(_bar(x, y + 2, value * scale, color, f"{part}: {value:.3g}"))
            x += value * scale
        parts.append(_text(x + 6, y + 15, f"{sum(stack.values()):.3g}"))
    top = len(names) * ROW
    return _svg(top + 3 * ROW, parts + _legend(list(stacks[0]), top + ROW))


def _legend(names: Sequence[str], y: float, columns: int = 5) -> list[str]:
    parts = []
    for i, name in enumerate(names):
        x, at = 20 + i % columns * (WIDTH - 20) / columns, y + i // columns * 18
        parts.append(
            f'<rect x="{x:.0f}" y="{at - 10:.0f}" width="10" height="10" '
            f'fill="{COLORS[i % len(COLORS)]}"/>'
        )
        parts.append(_text(x + 15, at, name))
    return parts


def _lines(names: Sequence[str], series: Sequence[Sequence[float]]) -> str:
    height, top = 220, max(max(values, default=0) for values in series) or 1
    steps = max(2, max(map(len, series))) - 1
    across, up = (WIDTH - 80) / steps, height / top
    parts = [f'<path d="M60 0V{height}H{WIDTH - 20}" stroke="#999" fill="none"/>']
    tick = 10 ** math.floor(math.log10(top))
    ticks = [n * tick for n in range(1, int(top / tick) + 1)]
    parts += [_text(52, height - t * up + 4, f"{t:g}", "end") for t in ticks]
    for number, values in enumerate(series):
        points = " ".join(
            f"{60 + i * across:.1f},{height - v * up:.1f}" for i, v in enumerate(values)
        )
        color = COLORS[number % len(COLORS)]
        parts.append(f'<polyline points="{points}" stroke="{color}" fill="none"/>')
    below = math.ceil(len(names) / 3) * 18 + 20
    return _svg(height + below, parts + _legend(names, height + 24, 3))


def _ablations(found: Sequence[Document]) -> str:
    parts = []
    names = [each["mechanism"] for each in found]
    for title, key in (("decode", "decode_worth"), ("prompt", "prefill_worth")):
        values = [(e[key]["median"], e[key]["low"], e[key]["high"]) for e in found]
        parts.append(f"<h3>{title}: speed with it over speed without it</h3>")
        parts.append(bars(names, values, reference=1))
    return "".join(parts)
