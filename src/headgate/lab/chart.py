"""Progress as a drawing: every experiment's speed over the first baseline's, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from headgate.lab.experiment import Experiment
from headgate.lab.report import changes, verdict_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 340, 60, 20, 34, 40
COLORS = {"kept": "#3ca951", "discarded": "#9aa0a6", "void": "#ff725c"}


@dataclass(frozen=True)
class Point:
    """An experiment with a figure.

    Attributes:
        speed, low, high: over the baseline that the first experiment had.
    """

    experiment: Experiment
    speed: float
    low: float
    high: float


def series(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    """Experiments that can be compared: of one store, machine, measure and campaign."""
    found: dict[str, list[Experiment]] = {}
    for e in experiments:
        p = e.proposal
        store = str(p.store.get("path", "?")).rpartition("/")[2]
        name = f"{store}, {p.protocol.metric}, machine {str(p.machine.get('key', '?'))[:6]}"
        found.setdefault(f"{name}, {p.campaign or 'single experiments'}", []).append(e)
    return found


def points(experiments: Sequence[Experiment]) -> list[Point]:
    """Those with a figure. The baseline of a round is what an earlier one has made, so
    its gain multiplies with that one's."""
    speed_of: dict[int, float] = {}
    found = []
    for e in experiments:
        if e.ratio is None or "low" not in e.result or e.verdict is None:
            continue
        chained = e.proposal.kind == "round" and e.proposal.parent is not None
        base = speed_of.get(e.proposal.parent or 0, 1.0) if chained else 1.0
        speed_of[e.id] = base * e.ratio
        found.append(
            Point(e, base * e.ratio, base * float(e.result["low"]), base * float(e.result["high"]))
        )
    return found


def best_so_far(found: Sequence[Point]) -> list[float]:
    """At each point, the highest speed that was kept until then; 1 before any."""
    best, line = 1.0, []
    for point in found:
        if point.experiment.verdict == "kept":
            best = max(best, point.speed)
        line.append(best)
    return line


def chart(title: str, experiments: Sequence[Experiment]) -> str:
    """A drawing of one series; it needs nothing."""
    found = points(experiments)
    head = _text(LEFT, 18, f"{title}: speed over the baseline")
    if not found:
        return _svg([head, _text(LEFT, HEIGHT / 2, "no experiment has a figure yet")])
    line = best_so_far(found)
    low = min(0.95, *(p.speed for p in found))
    high = max(1.05, *(p.speed for p in found))
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)

    def x(place: float) -> float:
        return LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / len(found)

    def y(value: float) -> float:
        inside = min(max(value, low), high)
        return TOP + (high - inside) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [head, *_grid(low, high, y)]
    steps = [f"{x(i - 0.5):.1f},{y(v):.1f} {x(i + 0.5):.1f},{y(v):.1f}" for i, v in enumerate(line)]
    parts.append(f'<polyline fill="none" stroke="#4269d0" stroke-width="2" '
                 f'points="{" ".join(steps)}"/>')  # fmt: skip
    for i, point in enumerate(found):
        parts.append(_mark(x(i), point, y))
    last = found[-1].experiment.id
    parts += [
        _text(x(0), HEIGHT - 22, str(found[0].experiment.id), "middle"),
        _text(x(len(found) - 1), HEIGHT - 22, str(last), "middle") if len(found) > 1 else "",
        _text((LEFT + WIDTH) / 2, HEIGHT - 22, "experiment", "middle"),
        _legend(line[-1]),
    ]
    return _svg(parts)


def _mark(x: float, point: Point, y: object) -> str:
    assert callable(y)
    e = point.experiment
    color = COLORS[verdict_of(e)]
    title = f"{e.id} {verdict_of(e)}: {changes(e)}: x {point.speed:.3f} ({point.low:.3f} to {point.high:.3f})"  # noqa: E501
    fill = color if e.verdict == "kept" else "white"
    return (
        f'<g stroke="{color}" stroke-width="1.5"><title>{escape(title)}</title>'
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
        f'<circle cx="{x:.1f}" cy="{y(point.speed):.1f}" r="4" fill="{fill}"/></g>'
    )


def _grid(low: float, high: float, y: object) -> list[str]:
    assert callable(y)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9)
                if (high - low) / s <= 10)  # fmt: skip
    parts, number = [], int(low / step) + 1
    while number * step < high:
        at, value = y(number * step), number * step
        color = "#888" if abs(value - 1) < step / 10 else "#e5e5e5"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
                     f'stroke="{color}"/>')  # fmt: skip
        parts.append(_text(LEFT - 8, at + 4, f"{value:.2f}", "end"))
        number += 1
    return parts


def _legend(best: float) -> str:
    y = HEIGHT - 4
    words = f"filled: kept; hollow: discarded; bars: 95 %; line: best so far, x {best:.3f}"
    return _text((LEFT + WIDTH) / 2, y, words, "middle")


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" font-family="system-ui" font-size="12">{"".join(parts)}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
