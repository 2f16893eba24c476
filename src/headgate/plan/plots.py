"""Drawings of plans and replays; needs matplotlib, which is optional."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headgate.errors import ResourceError, UsageError
from headgate.measure.plots import require_matplotlib

Document = dict[str, Any]


def plot_plan(document: Document, path: Path) -> None:
    """Decode speed and hit rate against the budget, from :meth:`Plan.to_dict`.

    Raises:
        UsageError: matplotlib is missing, or knows no such image format.
        ResourceError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    speeds, parts = figure.subplots(1, 2)
    rows = [row for row in document["rows"] if row["fits"]]
    lines = sorted({(row["expert_bits"], row["experts_per_token"]) for row in rows})
    for number, (bits, k) in enumerate(lines):
        found = [r for r in rows if (r["expert_bits"], r["experts_per_token"]) == (bits, k)]
        memory = [r["budget_bytes"] / 2**30 for r in found]
        speed = [r["decode_tokens_per_s"] for r in found]
        lossy = ", lossy" if found[0]["lossy"] else ""
        color = f"C{number}"
        values = [s["value"] for s in speed]
        speeds.plot(memory, values, "o-", color=color, label=f"{bits} bits, {k} experts{lossy}")
        speeds.fill_between(
            memory, [s["low"] for s in speed], [s["high"] for s in speed], color=color, alpha=0.12
        )
        parts.plot(memory, [100 * r["hit_rate"] for r in found], "o-", color=color)
    speeds.set(
        xlabel="memory budget, GiB", ylabel="tokens per second", title="decoding: forecast, 90 %"
    )
    speeds.set_ylim(bottom=0)
    parts.set(xlabel="memory budget, GiB", ylabel="%", title="experts found in memory")
    parts.set_ylim(0, 102)
    if lines:
        speeds.legend()
    figure.suptitle(f"{document['model']['name']} on {document['machine']['name']}")
    save(figure, path)


def plot_replay(document: Document, path: Path) -> None:
    """Hit rate and throughput against memory, reuse distances, use by layer and expert;
    from :func:`headgate.plan.replay_report.report`. Raises as :func:`plot_plan`."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    (rates, speeds), (reuse, heat) = figure.subplots(2, 2)
    for number, name in enumerate(document["policies"]):
        found = [row for row in document["rows"] if row["policy"] == name]
        memory = [row["bytes"] / 2**30 for row in found]
        style = {"color": f"C{number}", "linestyle": "--" if name == "belady" else "-"}
        rates.plot(memory, [100 * r["decode_hit_rate"] for r in found], label=name, **style)
        if found[0]["tokens_per_s"] is not None:
            speeds.plot(memory, [r["tokens_per_s"] for r in found], label=name, **style)
    rates.set(xlabel="cache, GiB", ylabel="%", title="generated tokens: experts in memory")
    rates.legend()
    speeds.set(xlabel="cache, GiB", ylabel="tokens per second", title="forecast")
    distances = document["reuse_distances"]
    reuse.bar(range(len(distances)), [100 * d["share"] for d in distances])
    reuse.set_xticks(range(len(distances)), [d["label"] for d in distances], rotation=45)
    reuse.set(ylabel="% of uses", title="different experts since the last use of the same")
    image = heat.imshow(np.array(document["uses"]), aspect="auto", interpolation="nearest")
    heat.set(xlabel="expert", ylabel="layer", title="uses")
    figure.colorbar(image, ax=heat)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a figure; raises as :func:`plot_plan`."""
    try:
        figure.savefig(path, dpi=120)
    except ValueError as error:
        raise UsageError(f"cannot draw {path}: {error}") from None
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None
