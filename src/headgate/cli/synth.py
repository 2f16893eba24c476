"""``headgate synth``: a store of a real model's shape with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from headgate.cli.progress import ProgressBar
from headgate.engine.budget import format_size
from headgate.errors import UsageError
from headgate.measure.routes import save_trace, statistics, trace_for
from headgate.measure.synth import (
    SynthOptions,
    SynthReport,
    catalogue,
    shape_config,
)
from headgate.measure.synth import synth as write_store

SHAPES = ", ".join(catalogue())


def synth(
    out: Annotated[
        Path | None, typer.Argument(help="The store to write; none to write a trace alone.")
    ] = None,
    like: Annotated[
        str, typer.Option(help=f"The shape: {SHAPES}, or the path of a config.json.")
    ] = ...,  # type: ignore[assignment]
    layers: Annotated[
        int | None, typer.Option(help="Fewer layers than the model has, or more.")
    ] = None,
    vocab: Annotated[int | None, typer.Option(help="Another vocabulary size.")] = None,
    expert_bits: Annotated[
        int, typer.Option(metavar="2|3|4|8|16", help="Bits of the experts' weights.")
    ] = 4,
    dense_bits: Annotated[
        int, typer.Option(metavar="8|16", help="Bits of all other projections.")
    ] = 8,
    group_size: Annotated[
        int, typer.Option(metavar="32|64|128", help="Weights that share a scale.")
    ] = 64,
    seed: Annotated[int, typer.Option(help="Other numbers of the same kind.")] = 0,
    trace: Annotated[
        Path | None,
        typer.Option(help="Also write a route trace (.npz) with published statistics."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of the trace.")] = 1024,
    experts_per_token: Annotated[
        int | None, typer.Option(help="Of the trace; the model's number if not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the store OUT with the shape of a real model and random weights.

    For measuring speed without a download: its answers mean nothing, and it has
    no tokenizer. Random weights route almost uniformly; a trace makes `bench` use
    experts as a trained model does.
    """
    if out is None and trace is None:
        raise UsageError("nothing to write: give OUT, or --trace FILE")
    options = SynthOptions(layers, vocab, expert_bits, dense_bits, group_size, seed)
    config = shape_config(like, layers, vocab)
    document: dict[str, Any] = {}
    lines = []
    if out is not None:
        with ProgressBar(f"writing {out}") as bar:
            report = write_store(out, config, options, like, bar.update)
        document |= report.to_dict()
        lines.append(_summary(report))
    if trace is not None:
        routes, experts = trace_for(config, tokens, experts_per_token, seed), config["num_experts"]
        save_trace(trace, routes, experts)
        found = statistics(routes, experts)
        document["trace"] = {"file": str(trace), **found.to_dict()}
        lines.append(f"{trace}: {found.describe()}")
    print(json.dumps(document) if as_json else "\n".join(lines))


def _summary(report: SynthReport) -> str:
    return (
        f"{report.out}: {format_size(report.store_bytes)}, {report.layers} layers like "
        f"{report.like}, random weights; wrote it in {report.seconds:.1f} s, "
        f"{report.store_bytes / report.seconds / 1e9:.2f} GB/s"
    )
