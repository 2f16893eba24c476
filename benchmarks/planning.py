"""How far off the planner is: forecasts against runs at twenty settings.

Synthetic stores of the shapes of Qwen3.5-35B-A3B and 122B-A10B, of several depths and
precisions, are run under budgets of 1 to 8 GB with 2 to 8 experts per token, with uniform
routes and with routes of published statistics. Every forecast is made before its run,
from a probe and a calibration taken before the runs of each store, since a shared machine is
another one ten minutes later; no coefficient of the formula was fitted to runs like these.

    python benchmarks/planning.py                  # about 20 minutes, 15 GB of disk
    python benchmarks/planning.py --tiny           # three small settings, to see it work

Bars: median error of decode tokens per second at most 10 %, and at least 18 of 20
measurements inside the forecast's interval. One store at a time is on disk, and removed.
Runs are processes of their own, the page cache dropped before each; the drive is read
past the page cache anyway. Measured is a generation in a process that has had a prompt
and has settled, as the forecast assumes; the prompt itself is measured on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from shutil import rmtree
from typing import Any

from headgate.engine.engine import DEFAULT_CONTEXT
from headgate.measure.bench import BUSY, settling
from headgate.measure.bench_job import Job, Phase
from headgate.measure.launch import Launcher
from headgate.measure.machine import describe_machine
from headgate.measure.probe import FULL, QUICK, Plan, probe
from headgate.measure.routes import save_trace, trace_for
from headgate.measure.synth import SynthOptions, shape_config, synth
from headgate.plan.calibrate import measure as calibrate
from headgate.plan.find import from_store
from headgate.plan.hits import Routing
from headgate.plan.machine import Machine, from_document
from headgate.plan.planner import Known, make_row
from headgate.store import Store

GIB = 1 << 30
PROMPT, ANSWER, FILL = 256, 128, 2048
BAR_ERROR, BAR_INSIDE = 0.10, 0.9
SMALL, LARGE = "qwen3.5-35b-a3b", "qwen3.5-122b-a10b"
VOCABULARY = 32768


@dataclass(frozen=True)
class Shape:
    """A store."""

    like: str
    layers: int
    bits: int
    vocab: int | None = VOCABULARY


@dataclass(frozen=True)
class Point:
    """A setting of a store. ``budget`` in GiB."""

    shape: Shape
    bits: int
    k: int
    budget: float
    routing: Routing


A = Shape(SMALL, 12, 4)
B = Shape(SMALL, 8, 8)
C = Shape(SMALL, 24, 2, None)
D = Shape(LARGE, 6, 4)
E = Shape(LARGE, 4, 8)
POINTS = (
    Point(A, 4, 8, 1.5, "uniform"),
    Point(A, 4, 8, 3, "published"),
    Point(A, 2, 8, 2, "published"),
    Point(A, 2, 4, 1, "uniform"),
    Point(A, 4, 4, 6, "published"),
    Point(B, 8, 8, 2, "published"),
    Point(B, 8, 4, 4, "uniform"),
    Point(B, 4, 6, 1, "published"),
    Point(B, 8, 2, 8, "published"),
    Point(C, 2, 8, 4, "published"),
    Point(C, 2, 8, 6, "uniform"),
    Point(C, 2, 4, 8, "published"),
    Point(D, 4, 8, 2, "published"),
    Point(D, 4, 8, 5, "uniform"),
    Point(D, 2, 6, 3, "published"),
    Point(D, 4, 2, 8, "published"),
    Point(E, 8, 8, 3, "published"),
    Point(E, 8, 4, 6, "uniform"),
    Point(E, 4, 8, 4, "published"),
    Point(E, 2, 3, 2, "uniform"),
)
TINY = (
    Point(Shape(SMALL, 3, 4, 8192), 4, 8, 0.5, "uniform"),
    Point(Shape(SMALL, 3, 4, 8192), 4, 8, 0.7, "published"),
    Point(Shape(SMALL, 3, 4, 8192), 2, 4, 2, "published"),
)


def say(words: str) -> None:
    """Progress on stderr."""
    print(words, file=sys.stderr, flush=True)


class Comparison:
    """Runs the points of one store after another.

    Args:
        folder: for the stores, on the drive that is probed.
    """

    def __init__(self, folder: Path, effort: Plan) -> None:
        self._folder, self._effort = folder, effort
        self.machines: list[dict[str, Any]] = []
        self.found: list[dict[str, Any]] = []

    def _measure_machine(self) -> Machine:
        os.sync()  # the store has just been written
        say("probing and calibrating")
        report, _ = probe(self._folder, self._effort)
        document = {**report.to_dict(), "calibration": calibrate().to_dict()}
        self.machines.append(document)
        return from_document(document, "this machine")

    def run(self, shape: Shape, points: Sequence[Point]) -> None:
        path = self._folder / "planning.headgate"
        say(f"writing {shape.like}, {shape.layers} layers at {shape.bits} bits")
        config = shape_config(shape.like, shape.layers, shape.vocab)
        options = SynthOptions(shape.layers, shape.vocab, shape.bits)
        try:
            synth(path, config, options, shape.like)
            launcher, machine = Launcher(Store.open(path)), self._measure_machine()
            for point in points:
                self.found.append(self._point(path, config, point, launcher, machine))
                say(line(self.found[-1]))
        finally:
            rmtree(path, ignore_errors=True)
            rmtree(path.with_name(path.name + ".partial"), ignore_errors=True)

    def _point(
        self,
        path: Path,
        config: dict[str, Any],
        point: Point,
        launcher: Launcher,
        machine: Machine,
    ) -> dict[str, Any]:
        model, budget = from_store(path), int(point.budget * GIB)
        known = Known(model, None)
        known.routing = point.routing
        row = make_row(model, machine, budget, point.bits, point.k, DEFAULT_CONTEXT, known)
        if row.forecast is None or row.division is None:
            raise SystemExit(f"{point} does not fit: it needs {row.smallest >> 20} MiB")
        trace = None
        if point.routing == "published":
            trace = self._folder / "routes.npz"
            # Other routes of the same kind than those of the forecast.
            routes = trace_for(config, 4096, point.k, seed=7)
            save_trace(trace, routes, config["num_experts"])
        job = Job(
            str(path),
            (),
            memory=budget,
            experts_per_token=point.k,
            expert_bits=point.bits,
            trace=None if trace is None else str(trace),
        )
        settle = settling(launcher.store, job)
        if row.forecast.setting.share >= 1:  # a cache that holds everything is to be full
            settle.insert(0, Phase("warm", FILL, 2))
        phases = (Phase("cold", PROMPT, 2), *settle, Phase("warm", 8, ANSWER))
        measured = launcher.run(Job(**{**vars(job), "phases": phases}))
        first, last = measured.result.phases[0], measured.result.phases[-1]
        decode, seconds = row.forecast.decode, row.forecast.first_token(PROMPT)
        return {
            "shape": f"{point.shape.like}, {point.shape.layers} layers",
            "bits": f"{point.bits} of {point.shape.bits}",
            "experts_per_token": point.k,
            "budget_gib": point.budget,
            "routing": point.routing,
            "slots": [row.division.slots, measured.result.budget["slots"]],
            "hit_rate": [row.forecast.hits.rate, last.decode.hit_rate],
            "drive_bytes_per_s": measured.bandwidth.drive,
            "others_cpu": measured.others_cpu,
            "token_s": row.forecast.token.to_dict(),
            "measured_parts_s": {k: v / ANSWER for k, v in last.decode.parts.items()},
            "decode": {**decode.to_dict(), "measured": last.decode_tokens_per_s},
            "first_token_s": {**seconds.to_dict(), "measured": first.ttft_s},
        }


def error(found: dict[str, Any], what: str = "decode") -> float:
    """Relative, of the forecast."""
    return abs(float(found[what]["value"] / found[what]["measured"] - 1))


def inside(found: dict[str, Any], what: str = "decode") -> bool:
    """Whether the interval holds the measurement."""
    return bool(found[what]["low"] <= found[what]["measured"] <= found[what]["high"])


def line(found: dict[str, Any]) -> str:
    """A row of the Markdown table."""
    d, t = found["decode"], found["first_token_s"]
    hits = "/".join(f"{rate:.0%}" for rate in found["hit_rate"])
    cells = [
        found["shape"],
        found["bits"],
        str(found["experts_per_token"]),
        f"{found['budget_gib']:g}",
        found["routing"],
        hits,
        f"{d['value']:.2f} ({d['low']:.2f}..{d['high']:.2f})",
        f"{d['measured']:.2f}",
        f"{d['value'] / d['measured'] - 1:+.0%}",
        "yes" if inside(found) else "NO",
        f"{t['value']:.2f}/{t['measured']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = (
    "| shape | bits | experts | GiB | routes | hits forecast/measured | decode tok/s | measured "
    "| error | inside | first token s forecast/measured |\n" + "|---" * 11 + "|"
)


def main() -> None:
    """Measure, print the table, and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="three small settings")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path, help="write everything that was found")
    args = parser.parse_args()
    begun = time.monotonic()
    points = TINY if args.tiny else POINTS
    with tempfile.TemporaryDirectory(prefix="planning-", dir=args.folder) as name:
        comparison = Comparison(Path(name), QUICK if args.tiny else FULL)
        for shape, chosen in groupby(points, lambda point: point.shape):
            comparison.run(shape, list(chosen))
    found = comparison.found
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['cores']} cores\n\n{HEAD}")
    print("\n".join(map(line, found)))
    middle = statistics.median(map(error, found))
    held, first = (
        sum(map(inside, found)),
        statistics.median(error(f, "first_token_s") for f in found),
    )
    reached = middle <= BAR_ERROR and held >= BAR_INSIDE * len(found)
    print(
        f"\nmedian error of decode {middle:.1%} (bar {BAR_ERROR:.0%}), inside the interval "
        f"{held} of {len(found)} (bar {BAR_INSIDE:.0%}): {'reached' if reached else 'NOT reached'}"
        f"; median error of the first token {first:.1%}; {time.monotonic() - begun:.0f} s"
    )
    if (busy := max(f["others_cpu"] or 0.0 for f in found)) > BUSY:
        print(f"others took up to {busy:.0%} of the processor: do not trust these figures")
    if args.json:
        args.json.write_text(
            json.dumps({"machines": comparison.machines, "points": found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
