"""Drawings of a probe; needs matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headgate.errors import ResourceError, UsageError
from headgate.measure.probe import ProbeReport


def require_matplotlib() -> None:
    """Raise :class:`UsageError` unless matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            'drawing needs matplotlib: pip install "headgate[plots]", or leave out --plot'
        ) from None


def plot_probe(report: ProbeReport, path: Path) -> None:
    """Draw read rates, measured as points and fitted as lines, and the model's errors.

    Raises:
        UsageError: matplotlib is missing, or knows no such image format.
        ResourceError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    rates, fitted = figure.subplots(1, 2)
    direct, model = report.of("direct"), report.cost_model
    sizes = np.geomspace(min(r.nbytes for r in direct), max(r.nbytes for r in direct), 60)
    for number, depth in enumerate(sorted({rate.depth for rate in direct})):
        found = [rate for rate in direct if rate.depth == depth]
        color = f"C{number}"
        rates.plot(
            [r.nbytes / 2**20 for r in found],
            [r.bytes_per_s / 1e9 for r in found],
            "o",
            color=color,
        )
        rates.plot(
            sizes / 2**20,
            [model.bytes_per_second(size, depth) / 1e9 for size in sizes],
            color=color,
            label=f"depth {depth}",
        )
        fitted.plot(
            [r.seconds * 1e3 for r in found],
            [1e3 * r.nbytes / model.bytes_per_second(r.nbytes, depth) for r in found],
            "o",
            color=color,
        )
    rates.set(
        xscale="log", xlabel="read size, MiB", ylabel="GB/s", title="random reads: measured, fitted"
    )
    rates.set_ylim(bottom=0)
    rates.legend()
    ends = fitted.get_xlim()
    fitted.plot(ends, ends, color="gray", linewidth=1)
    fitted.set(
        xscale="log",
        yscale="log",
        xlabel="measured ms per read",
        ylabel="fitted ms per read",
        title=f"median error {np.median(report.errors):.1%}",
    )
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UsageError(f"cannot draw {path}: {error}") from None
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
