"""``headgate convert``: a checkpoint to a store."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from headgate.cli.progress import ProgressBar
from headgate.convert import ConvertOptions, ConvertReport
from headgate.convert import convert as convert_checkpoint
from headgate.engine.budget import format_size


def convert(
    src: Annotated[
        Path,
        typer.Argument(
            help="Folder with config.json and *.safetensors, as from the Hub or mlx-lm."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The store to write, such as NAME.headgate.")],
    expert_bits: Annotated[
        int | None,
        typer.Option(
            metavar="2|3|4|8|16",
            help="Bits of the experts' weights; readable at fewer later. 16 keeps them. Default 4.",
        ),
    ] = None,
    dense_bits: Annotated[
        int | None,
        typer.Option(
            metavar="8|16", help="Bits of all other projections; 16 keeps them. Default 8."
        ),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(metavar="32|64|128", help="Weights that share a scale. Default 64."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of `headgate calibrate`: better experts of 2 to 4 bits, in more time.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads for quantising; 0: one per core.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Convert the checkpoint SRC to the expert store OUT.

    Reads bf16, f16 and f32 checkpoints, and repacks those that MLX has
    quantised bit for bit. Needs the disk space of the store and little memory.
    When it was interrupted or killed, the same command resumes.
    """
    options = ConvertOptions(expert_bits, dense_bits, group_size, threads, calibration)
    try:
        with ProgressBar(f"converting {src} to {out}") as bar:
            report = convert_checkpoint(src, out, options, bar.update)
    except KeyboardInterrupt:
        print("headgate: interrupted: run the same command again to resume", file=sys.stderr)
        raise typer.Exit(130) from None
    for note in report.notes:
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(report.to_dict()) if as_json else _summary(report))


def _summary(report: ConvertReport) -> str:
    lines = [
        f"{report.out}: {format_size(report.store_bytes)}, {report.expert_bits}-bit experts "
        f"from {report.source}",
        f"wrote {format_size(report.written_bytes)} in {report.seconds:.1f} s",
    ]
    lines += [
        f"left out: {skipped.tensors} {kind} tensors, {format_size(skipped.nbytes)}"
        for kind, skipped in report.skipped.items()
    ]
    return "\n".join(lines)
