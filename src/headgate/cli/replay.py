"""``headgate replay``: a route trace over other caches than the recorded one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.engine import parse_size
from headgate.errors import ResourceError, UsageError
from headgate.measure.plots import require_matplotlib
from headgate.paths import probe_file
from headgate.plan.plots import plot_replay
from headgate.plan.replay_html import page
from headgate.plan.replay_report import report, text
from headgate.plan.trace_file import load
from headgate.stream import CostModel


def replay(
    file: Annotated[
        Path, typer.Argument(help="A route trace, from `--trace` of run, serve or bench.")
    ],
    policies: Annotated[
        str | None, typer.Option(help="Such as lru,lfu,belady; all of them if not given.")
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help="Memory of the cache, such as 1G,4G; a range if not given.")
    ] = None,
    machine: Annotated[
        Path | None,
        typer.Option(help="Forecast for the drive of this probe instead of the trace's own."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the result into this image.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Replay FILE through the engine's own cache, over policies and sizes.

    The recorded run itself is repeated call by call, and must give the same hits, misses
    and evictions. Belady's optimum, which knows the future, is the bound.
    """
    if plot is not None:
        require_matplotlib()
    trace = load(file)
    record = trace.about["record_bytes"]
    slots = None if sizes is None else [parse_size(size) // record for size in sizes.split(",")]
    names = None if policies is None else policies.split(",")
    document = report(trace, names, slots, _drive(file, machine), _say)
    if plot is not None:
        plot_replay(document, plot)
    if html is not None:
        _write(html, page(document))
    print(json.dumps(document) if as_json else text(document))


def _drive(file: Path, machine: Path | None) -> CostModel | None:
    if machine is None:
        return CostModel.load(probe_file(file))
    found = CostModel.load(machine)
    if found is None:
        raise UsageError(f"{machine} holds no cost model: give the JSON of `headgate probe`")
    return found


def _say(doing: Any) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{doing} ...\r", end="", file=sys.stderr, flush=True)


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
