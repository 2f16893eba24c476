"""``headgate plan``: what a model needs and how fast it will be, before a download."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from headgate.engine import parse_size
from headgate.errors import UsageError
from headgate.measure.plots import require_matplotlib
from headgate.plan.find import find
from headgate.plan.machine import save, saved_machine, say, this_machine
from headgate.plan.planner import Wish
from headgate.plan.planner import plan as make_plan
from headgate.plan.plots import plot_plan
from headgate.plan.report import text
from headgate.plan.trace_file import load


def plan(
    model: Annotated[
        str, typer.Argument(help="A store, a checkpoint folder, a config.json or a known name.")
    ],
    machine: Annotated[
        Path | None,
        typer.Option(help="Plan for the machine in this file instead of for this one."),
    ] = None,
    save_machine: Annotated[
        Path | None, typer.Option(help="Write this machine's figures, to plan for it elsewhere.")
    ] = None,
    budgets: Annotated[
        str | None, typer.Option(help="Memory budgets, such as 8G,16G; sensible ones if not given.")
    ] = None,
    bits: Annotated[str | None, typer.Option(help="Bits of the experts, such as 2,4.")] = None,
    experts_per_token: Annotated[
        str | None, typer.Option(help="Numbers of experts, such as 4,8; fewer is lossy.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Longest sequence in tokens; 8192 or the model's limit.")
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt to forecast.")] = 512,
    trace: Annotated[
        Path | None, typer.Option(help="Take hit rates from this route trace of the model.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the forecast into this image.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Forecast sizes and speed of MODEL on this machine, or on one described in a file.

    Sizes of supported models are exact. Speeds come with an interval; what they are made
    of is in docs/planning.md.
    """
    if plot is not None:
        require_matplotlib()
    wish = Wish(
        _list(budgets, "budgets", parse_size),
        _list(bits, "bits", int),
        _list(experts_per_token, "experts per token", int),
        context,
        prompt,
        None if trace is None else load(trace),
    )
    found = find(model)
    if machine is not None:
        if save_machine is not None:
            raise UsageError("--save-machine writes this machine, not the one of --machine")
        target = saved_machine(machine, say)
    else:
        where = found.store.path if found.store is not None else Path()
        target, document = this_machine(where, say)
        if save_machine is not None:
            save(document, save_machine)
    result = make_plan(found, target, wish)
    if plot is not None:
        plot_plan(result.to_dict(), plot)
    print(json.dumps(result.to_dict()) if as_json else text(result))


def _list(words: str | None, what: str, parse: Callable[[str], int]) -> list[int] | None:
    if words is None:
        return None
    try:
        found = [parse(word) for word in words.split(",")]
    except ValueError:
        raise UsageError(f"{what} {words!r} cannot be: give numbers, such as 2,4") from None
    if min(found) < 1:
        raise UsageError(f"{what} {words!r} cannot be: they are at least 1")
    return found
