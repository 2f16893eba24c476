"""``headgate eval``: what a model can still do, on an engine or at an address."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headgate.cli.lossy import (
    ExpertBits,
    PreferCached,
    Refine,
    RouterFloor,
    RouterMass,
    TopShare,
)
from headgate.demo import demo_store
from headgate.engine import parse_size
from headgate.errors import ResourceError, UsageError
from headgate.evals.target import MAX_TOKENS

if TYPE_CHECKING:
    from headgate.evals.evaluate import Request

KEY_VARIABLE = "OPENAI_API_KEY"
MODES = {"both": ("free", "constrained"), "free": ("free",), "constrained": ("constrained",)}


def evaluate_command(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A store, or the address of a server such as http://127.0.0.1:8080/v1; "
            "without one, the embedded demo."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Of tools, schema, recall, divergence; all that the target can do."),
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="both|free|constrained", help="Held to a grammar or not.")
    ] = "both",
    limit: Annotated[
        int | None, typer.Option(help="Prompts of each kind; all if not given.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Questions asked at a time.")] = 4,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = MAX_TOKENS,
    file: Annotated[
        Path | None, typer.Option(help="Prompts of your own, JSON lines, for the one --suite.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Measure divergence on this text, not the suite's own.")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Store of the full model; STORE with all its bits if not given."),
    ] = None,
    experts_per_token: Annotated[int | None, typer.Option(help="Lossy: fewer experts.")] = None,
    expert_bits: ExpertBits = None,
    top_share: TopShare = None,
    refine: Refine = False,
    router_mass: RouterMass = None,
    router_floor: RouterFloor = None,
    prefer_cached: PreferCached = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of the whole process, such as 8G.")
    ] = None,
    context: Annotated[int | None, typer.Option(help="Longest sequence in tokens.")] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness instead, such as a,b.")
    ] = None,
    task_folder: Annotated[
        Path | None, typer.Option(help="Folder with task files (YAML) of your own.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name to ask the server for; its first if not given.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer of a server.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure tool calls, JSON by schema, recall and divergence, each with its interval.

    Prompts come with the package. A server's key is read from OPENAI_API_KEY.
    """
    # Not above: other commands would load the grammar library and more for nothing.
    from headgate.evals.evaluate import Request, evaluate_store
    from headgate.evals.suites.tasks import run_tasks
    from headgate.evals.tables import text as tables

    names, diverge = _suites(suite)
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}, expected both, free or constrained")
    request = Request(names, MODES[mode], file, limit, batch, max_tokens, text, _note)
    options = {
        "memory": parse_size(memory) if memory else None,
        "context": context,
        "experts_per_token": experts_per_token,
        "expert_bits": expert_bits,
        "top_share": top_share,
        "refine": refine or None,
        "router_mass": router_mass,
        "router_floor": router_floor,
        "prefer_cached": prefer_cached,
        "threads": threads,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if target is not None and target.startswith(("http://", "https://")):
        if diverge and suite is not None:
            raise UsageError("divergence needs distributions, which an address does not give")
        if options or tasks:
            asked = ", ".join(["tasks"] if tasks else options)
            raise UsageError(f"{asked}: for a store only; a server has its own")
        document = _ask_server(target, model, timeout, request)
    else:
        store = demo_store() if target is None else Path(target)
        if tasks is not None:
            document = run_tasks(store, options, tasks.split(","), task_folder, limit)
        else:
            document = evaluate_store(store, options, request, reference, diverge)
    print(json.dumps(document, ensure_ascii=False) if as_json else tables(document))


def _suites(text: str | None) -> tuple[tuple[str, ...], bool]:
    """Names of generating suites, and whether divergence is measured."""
    from headgate.evals.suites import SUITES

    names = [*SUITES, "divergence"] if text is None else [w.strip() for w in text.split(",")]
    unknown = [name for name in names if name not in (*SUITES, "divergence")]
    if unknown:
        known = ", ".join([*SUITES, "divergence"])
        raise UsageError(f"there is no suite {unknown[0]!r}; there are {known}")
    return tuple(name for name in names if name in SUITES), "divergence" in names


def _ask_server(url: str, model: str | None, timeout: float, request: Request) -> dict[str, Any]:
    from headgate.evals.evaluate import evaluate
    from headgate.evals.http_target import HttpTarget

    if timeout <= 0:
        raise UsageError(f"timeout is {timeout}, it must be more than 0 seconds")
    target = HttpTarget(url, model, os.environ.get(KEY_VARIABLE), timeout)
    try:
        document = evaluate(target, request)
    finally:
        target.close()
    asked = [each["all"] for modes in document["suites"].values() for each in modes.values()]
    if asked and all(each["n"] == 0 and each["errors"] for each in asked):
        first = next(e["why"] for m in document["suites"].values() for f in m.values()
                     for e in f["examples"])  # fmt: skip
        raise ResourceError(f"no question was answered: {first}")
    return document


def _note(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
