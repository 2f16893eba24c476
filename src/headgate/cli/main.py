"""``headgate``: the commands, and what becomes of errors."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

import headgate
from headgate.cli.bench import bench
from headgate.cli.calibrate import calibrate
from headgate.cli.chat import chat
from headgate.cli.convert import convert
from headgate.cli.eval import evaluate_command
from headgate.cli.inspect import inspect
from headgate.cli.lab import lab
from headgate.cli.plan import plan
from headgate.cli.probe import probe
from headgate.cli.replay import replay
from headgate.cli.run import run
from headgate.cli.serve import serve
from headgate.cli.sweep import sweep
from headgate.cli.synth import synth
from headgate.cli.verify import verify
from headgate.errors import HeadgateError

app = typer.Typer(
    help="Run Mixture-of-Experts language models larger than memory, streamed from SSD.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(chat)
app.command()(serve)
app.command()(convert)
app.command()(calibrate)
app.command()(inspect)
app.command()(verify)
app.command()(synth)
app.command()(probe)
app.command()(bench)
app.command()(plan)
app.command()(replay)
app.command("eval")(evaluate_command)
app.command()(sweep)
app.add_typer(lab, name="lab")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(headgate.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run a command; exit with 0, with 2 on bad input, or with 130 on Ctrl-C."""
    try:
        app(standalone_mode=True)
    except HeadgateError as error:
        print(f"headgate: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("headgate: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        print(
            "headgate: error: out of memory; try a smaller --memory or --context", file=sys.stderr
        )
        sys.exit(2)
