"""``headgate bench``: how fast a store runs here, and how close that is to the limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from headgate.engine import parse_size
from headgate.errors import ResourceError, UsageError
from headgate.measure.bench import Matrix, bench_ablations
from headgate.measure.bench import bench as run_bench
from headgate.measure.bench_job import Job, Temperature
from headgate.measure.html import page
from headgate.measure.report import text
from headgate.measure.trace import require_pyarrow
from headgate.store import Store

T = TypeVar("T")
MB = 1_000_000


def bench(
    store: Annotated[Path, typer.Argument(help="A store.")],
    prompt_lengths: Annotated[str, typer.Option(help="Tokens of the prompts.")] = "8,128",
    generation_lengths: Annotated[str, typer.Option(help="Tokens generated after them.")] = "32",
    budgets: Annotated[
        str | None, typer.Option(help="Memory budgets, such as 2G,8G; what fits if not given.")
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Only new processes, page cache dropped.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Only processes that have had a prompt before.")
    ] = False,
    repeats: Annotated[int, typer.Option(help="Processes for each figure.")] = 3,
    experts_per_token: Annotated[int | None, typer.Option(help="Lossy: fewer experts.")] = None,
    expert_bits: Annotated[int | None, typer.Option(help="Lossy: fewer bits.")] = None,
    threads: Annotated[int | None, typer.Option(help="One per core if not given.")] = None,
    context: Annotated[int | None, typer.Option(help="Longest sequence, as of `run`.")] = None,
    routes: Annotated[
        Path | None, typer.Option(help="Route by this trace of `headgate synth`, not by routers.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Record a route trace of the first process, for `headgate replay`."),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            help="Decode the model's own tokens, or random ones; random if the weights are."
        ),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Turn one mechanism off at a time instead.")
    ] = False,
    throttle: Annotated[
        float, typer.Option(metavar="MB/s", help="Read no faster than this; 0 for no limit.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    html: Annotated[Path | None, typer.Option(help="Write a report with plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Measure prompts and generation, cold and warm, against what drive and memory allow.

    Every figure is a median over processes of their own, beside the roofline that the
    bandwidths measured in between give. Prompts are random tokens.
    """
    temperatures: tuple[Temperature, ...] = ("cold", "warm")
    if cold != warm:
        temperatures = ("cold",) if cold else ("warm",)
    matrix = Matrix(
        _list(prompt_lengths, "prompt lengths", _at_least(1)),
        _list(generation_lengths, "generation lengths", _at_least(2)),
        [None] if budgets is None else _list(budgets, "budgets", parse_size),
        temperatures,
        repeats,
    )
    if repeats < 1 or throttle < 0 or seed < 0:
        raise UsageError("repeats are at least 1, throttle and seed not negative")
    if trace is not None:
        require_pyarrow()
        if ablate:
            raise UsageError("--trace records no --ablate")
    opened = Store.open(store)
    if expert_bits is not None:
        opened.layout.prefix(expert_bits)  # refuses bits that the store does not have
    if greedy is None:
        greedy = opened.manifest.provenance.get("source") != "synthetic"
    job = Job(
        str(store),
        (),
        context=context,
        experts_per_token=experts_per_token,
        expert_bits=expert_bits,
        threads=threads,
        trace=None if routes is None else str(routes),
        record=None if trace is None else str(trace),
        greedy=greedy,
        seed=seed,
    ).throttled(throttle * MB)
    measure = bench_ablations if ablate else run_bench
    command = ["headgate", *sys.argv[1:]]
    document = measure(opened, job, matrix, command, lambda x: print(x, file=sys.stderr)).to_dict()
    if html is not None:
        _write(html, page(document))
    print(json.dumps(document) if as_json else text(document))


def _at_least(least: int) -> Callable[[str], int]:
    def parse(word: str) -> int:
        value = int(word)
        if value < least:
            raise ValueError
        return value

    return parse


def _list(words: str, what: str, parse: Callable[[str], T]) -> list[T]:
    try:
        return [parse(word) for word in words.split(",")]
    except ValueError:
        raise UsageError(f"{what} {words!r} cannot be: give numbers, such as 8,128") from None


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
