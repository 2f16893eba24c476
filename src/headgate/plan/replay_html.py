"""A replay as one HTML file: tables, and drawings in SVG. Needs nothing."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from headgate.measure.html import COLORS, STYLE
from headgate.plan.replay_report import Document, text

WIDTH, HEIGHT, LEFT = 860, 300, 60


def page(document: Document) -> str:
    """The whole file, from :func:`headgate.plan.replay_report.report`."""
    rows = document["rows"]
    parts = [
        f"<pre>{escape(text(document))}</pre>",
        "<h2>Hit rate of generated tokens against memory, %</h2>",
        _lines(document, lambda row: 100 * row["decode_hit_rate"]),
    ]
    if any(row["tokens_per_s"] is not None for row in rows):
        parts += [
            "<h2>Forecast, tokens per second</h2>",
            _lines(document, lambda row: row["tokens_per_s"] or 0.0),
        ]
    parts += [
        "<h2>Different experts since the last use of the same, % of uses</h2>",
        _bars([(d["label"], 100 * d["share"]) for d in document["reuse_distances"]]),
        "<h2>Uses of each expert (across) in each layer (down)</h2>",
        _heat(document["uses"]),
    ]
    raw = escape(json.dumps(document))
    parts.append(f"<details><summary>All figures</summary><pre>{raw}</pre></details>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>headgate replay</title>'
        f"<style>{STYLE}</style><h1>headgate replay</h1>{''.join(parts)}</html>\n"
    )


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'font-family="system-ui" font-size="12">{"".join(parts)}</svg>'
    )


def _lines(document: Document, value: Callable[[Document], float]) -> str:
    """A line for each policy over the bytes of the cache."""
    rows = document["rows"]
    right = max(row["bytes"] for row in rows)
    top = max(max(value(row) for row in rows), 1e-9)
    across, up = (WIDTH - LEFT - 20) / right, (HEIGHT - 10) / top
    parts = [f'<path d="M{LEFT} 0V{HEIGHT}H{WIDTH - 20}" stroke="#999" fill="none"/>']
    tick = 10 ** math.floor(math.log10(top))
    parts += [
        _text(LEFT - 6, HEIGHT - n * tick * up + 4, f"{n * tick:g}", "end")
        for n in range(1, int(top / tick) + 1)
    ]
    for share in (0.25, 0.5, 0.75, 1):
        label = f"{share * right / 2**30:.2g} GiB"
        parts.append(_text(LEFT + share * right * across, HEIGHT + 16, label))
    for number, name in enumerate(document["policies"]):
        color = COLORS[number % len(COLORS)]
        points = " ".join(
            f"{LEFT + row['bytes'] * across:.1f},{HEIGHT - value(row) * up:.1f}"
            for row in rows
            if row["policy"] == name
        )
        dashes = ' stroke-dasharray="6 3"' if name == "belady" else ""
        parts.append(
            f'<polyline points="{points}" stroke="{color}" stroke-width="2" fill="none"{dashes}>'
            f"<title>{escape(name)}</title></polyline>"
        )
        x = LEFT + number * 120
        parts.append(f'<rect x="{x}" y="{HEIGHT + 28}" width="10" height="10" fill="{color}"/>')
        parts.append(_text(x + 15, HEIGHT + 38, name, "start"))
    return _svg(HEIGHT + 50, parts)


def _bars(values: Sequence[tuple[str, float]]) -> str:
    width = (WIDTH - LEFT) / max(1, len(values))
    top = max(max((value for _, value in values), default=0), 1e-9)
    parts = []
    for i, (label, value) in enumerate(values):
        height = value / top * (HEIGHT - 40)
        x = LEFT + i * width
        parts.append(
            f'<rect x="{x:.1f}" y="{HEIGHT - 20 - height:.1f}" width="{0.8 * width:.1f}" '
            f'height="{height:.1f}" fill="{COLORS[0]}"><title>{value:.2f} %</title></rect>'
        )
        parts.append(_text(x + 0.4 * width, HEIGHT - 4, label))
        parts.append(_text(x + 0.4 * width, HEIGHT - 26 - height, f"{value:.1f}"))
    return _svg(HEIGHT, parts)


def _heat(uses: Any) -> str:
    found = np.array(uses, np.float64)
    scaled = np.sqrt(found / max(1.0, float(found.max())))
    image = base64.b64encode(_png((255 * (1 - scaled)).astype(np.uint8))).decode()
    height = max(60, min(480, 8 * len(found)))
    return (
        f'<p>white: never used; black: {found.max():.0f} times</p><img width="{WIDTH}" '
        f'height="{height}" style="image-rendering:pixelated" alt="uses by layer and expert" '
        f'src="data:image/png;base64,{image}">'
    )


def _png(grey: Any) -> bytes:
    """uint8 [rows, columns] as an image (ISO/IEC 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    rows, columns = grey.shape
    lines = b"".join(b"\0" + row.tobytes() for row in grey)
    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
