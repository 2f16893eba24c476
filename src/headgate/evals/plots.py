"""Drawings of a sweep in SVG. They need nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from headgate.measure.html import COLORS

WIDTH, HEIGHT = 860, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 16, 46
ROW, LABEL = 24, 220


@dataclass(frozen=True)
class Mark:
    """A point with the interval of its height.

    Attributes:
        title: shown under the pointer.
    """

    x: float
    y: float
    low: float
    high: float
    title: str


def curves(
    series: Mapping[str, Sequence[Mark]],
    across: str,
    up: str,
    *,
    logarithmic: bool = False,
    loose: Collection[str] = (),
) -> str:
    """Marks, one colour for each series, joined by lines except those of ``loose``."""
    marks = [mark for found in series.values() for mark in found]
    if not marks:
        return ""
    scale = math.log2 if logarithmic else float
    xs = [scale(mark.x) for mark in marks]
    x0, x1 = min(xs), max(xs)
    y0, y1 = min(m.low for m in marks), max(m.high for m in marks)
    y0, y1 = y0 - 0.05 * (y1 - y0 or 1), y1 + 0.05 * (y1 - y0 or 1)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + 12 + (scale(x) - x0) / ((x1 - x0) or 1) * (WIDTH - LEFT - RIGHT - 24),
            TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    parts = _axes(y0, y1, sorted({m.x for m in marks}), at, across, up)
    for number, (name, found) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        line = " ".join("{:.1f},{:.1f}".format(*at(m.x, m.y)) for m in found)
        if name not in loose:
            parts.append(f'<polyline points="{line}" stroke="{color}" fill="none" opacity="0.5"/>')
        for m in found:
            (x, y), (_, low), (_, high) = at(m.x, m.y), at(m.x, m.low), at(m.x, m.high)
            parts.append(f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{color}"/>')
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}">'
                f"<title>{escape(m.title)}</title></circle>"
            )
    return _svg(HEIGHT + _legend_height(series), parts + _legend(list(series), HEIGHT + 8))


def _axes(
    y0: float,
    y1: float,
    xs: Sequence[float],
    at: Callable[[float, float], tuple[float, float]],
    across: str,
    up: str,
) -> list[str]:
    bottom = HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" stroke="#999" fill="none"/>']
    step = 10 ** math.floor(math.log10((y1 - y0) or 1))
    step = next(s for s in (step, step / 2, step / 5) if (y1 - y0) / s >= 3)
    ticks = [i * step for i in range(math.ceil(y0 / step), math.floor(y1 / step) + 1)]
    parts += [_text(LEFT - 8, at(xs[0], y)[1] + 4, f"{y:.4g}", "end") for y in ticks]
    shown = -math.inf
    for x in xs:
        place = at(x, y0)[0]
        if place - shown > 48:  # labels do not cover each other
            parts.append(_text(place, bottom + 18, f"{x:.3g}", "middle"))
            shown = place
    parts.append(_text(WIDTH - RIGHT, bottom + 38, across, "end"))
    parts.append(_text(LEFT, TOP - 4, up))
    return parts


def stacks(rows: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> str:
    """Horizontal bars of counts, one colour for each of ``names``."""
    used = [name for name in names if any(row.get(name) for row in rows.values())]
    most = max((sum(row.values()) for row in rows.values()), default=0) or 1
    across = (WIDTH - LABEL - 60) / most
    parts = []
    for i, (label, row) in enumerate(rows.items()):
        x, y = float(LABEL), i * ROW
        parts.append(_text(LABEL - 8, y + 15, label, "end"))
        for name in used:
            width = row.get(name, 0) * across
            color = COLORS[used.index(name) % len(COLORS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 2}" width="{width:.1f}" height="{ROW - 6}" '
                f'fill="{color}"><title>{escape(f"{name}: {row.get(name, 0)}")}</title></rect>'
            )
            x += width
        parts.append(_text(x + 6, y + 15, str(sum(row.values()))))
    top = len(rows) * ROW
    return _svg(top + _legend_height(used), parts + _legend(used, top + 14))


def _legend_height(names: Sequence[str] | Mapping[str, object]) -> int:
    return 18 * math.ceil(len(names) / 4) + 20


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts = []
    for i, name in enumerate(names):
        x, at = 20 + i % 4 * (WIDTH - 20) / 4, y + i // 4 * 18
        color = COLORS[i % len(COLORS)]
        parts.append(f'<rect x="{x:.0f}" y="{at - 10:.0f}" width="10" height="10" fill="{color}"/>')
        parts.append(_text(x + 15, at, name))
    return parts


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 -12 {WIDTH} {height + 12:.0f}" width="{WIDTH}" '
        f'font-family="system-ui" font-size="12">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
