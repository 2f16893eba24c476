"""``headgate probe``: what this machine can do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from headgate.engine.budget import format_size
from headgate.measure.plots import plot_probe, require_matplotlib
from headgate.measure.probe import FULL, QUICK, ProbeReport
from headgate.measure.probe import probe as run_probe


def probe(
    path: Annotated[
        Path, typer.Argument(help="A file or folder on the drive to measure.")
    ] = Path(),
    plot: Annotated[
        Path | None, typer.Option(help="Draw measured against fitted into this image.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less than 10 seconds, and less exact.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure the drive of PATH, memory and kernels, and fit the cost model of reads.

    Writes a scratch file of up to 2 GiB beside PATH and removes it. The figures go
    to the user's cache, where other commands find them.
    """
    if plot is not None:
        require_matplotlib()
    report, saved = run_probe(
        path, QUICK if quick else FULL, lambda doing: print(f"{doing} ...", file=sys.stderr)
    )
    if plot is not None:
        plot_probe(report, plot)
    print(json.dumps(report.to_dict()) if as_json else _text(report))
    print(f"saved as {saved}", file=sys.stderr)


def _text(report: ProbeReport) -> str:
    parts = [_head(report), _reads(report), _others(report), _model(report), _cores(report)]
    parts += ["\n".join(f"note: {note}" for note in report.notes)] if report.notes else []
    return "\n\n".join(parts)


def _head(report: ProbeReport) -> str:
    m, d = report.machine, report.drive
    cache = m["last_level_cache_bytes"]
    lines = [
        f"{m['cpu']}, {m['cores']} cores ({', '.join(m['isa'])})"
        + (f", cache {format_size(cache)}" if cache else "")
        + f", memory {format_size(m['memory_bytes'])}",
        m["system"],
        ", ".join(str(d[key]) for key in ("device", "model", "file_system") if key in d),
        f"reads through {report.backend}, {'direct' if report.direct else 'buffered'}",
    ]
    return "\n".join(line for line in lines if line)


def _reads(report: ProbeReport) -> str:
    direct = report.of("direct")
    depths = sorted({rate.depth for rate in direct})
    cells = {(rate.nbytes, rate.depth): rate for rate in direct}
    lines = ["GB/s, random reads" + "".join(f"{f'depth {d}':>10}" for d in depths)]
    for size in sorted({rate.nbytes for rate in direct}):
        row = [cells.get((size, depth)) for depth in depths]
        shown = [f"{rate.bytes_per_s / 1e9:.2f}" if rate else "-" for rate in row]
        lines.append(f"{format_size(size):>18}" + "".join(f"{text:>10}" for text in shown))
    return "\n".join(lines)


def _others(report: ProbeReport) -> str:
    lines = ["GB/s to compare with, page cache empty"]
    cells = {(rate.nbytes, rate.depth): rate for rate in report.of("direct")}
    for rate in report.of("buffered") + report.of("mmap"):
        direct = cells.get((rate.nbytes, rate.depth))
        beside = f", direct {direct.bytes_per_s / 1e9:.2f}" if direct else ""
        lines.append(
            f"{format_size(rate.nbytes):>18}  {rate.mode}, depth {rate.depth}: "
            f"{rate.bytes_per_s / 1e9:.2f}{beside}"
        )
    return "\n".join(lines)


def _model(report: ProbeReport) -> str:
    c, errors = report.cost_model, report.to_dict()["fit"]
    return (
        f"cost model: latency {c.latency * 1e6:.0f} us, one read {c.stream / 1e9:.2f} GB/s; "
        f"busy drive {c.overhead * 1e6:.0f} us a read, {c.bandwidth / 1e9:.2f} GB/s; "
        f"sharpness {c.sharpness:.1f}\n"
        f"fitted against measured: median error {errors['median_error']:.1%}, "
        f"p90 {errors['p90_error']:.1%}, largest {errors['max_error']:.1%}"
    )


def _cores(report: ProbeReport) -> str:
    lines = [
        f"memory, {rate.threads} threads: {rate.bytes_per_s / 1e9:.1f} GB/s"
        for rate in report.memory
    ]
    lines += ["", "matrix-vector     in cache, 1 thread     from memory, all threads"]
    for cached, large in zip(
        (k for k in report.kernels if k.cached),
        (k for k in report.kernels if not k.cached),
        strict=True,
    ):
        share = large.bytes_per_s / report.memory_bytes_per_s
        name = "bf16" if large.bits == 16 else f"{large.bits} bits"
        lines.append(
            f"{name:<18}{cached.weights_per_s / 1e9:>5.1f} Gweights/s       "
            f"{large.weights_per_s / 1e9:>5.1f} Gweights/s, {large.bytes_per_s / 1e9:.1f} GB/s, "
            f"{share:.0%} of memory"
        )
    return "\n".join(lines)
