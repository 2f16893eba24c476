"""A run's figures as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headgate.measure.report import align


def text(document: Mapping[str, Any]) -> str:
    """The tables of what `headgate eval` has found."""
    blocks = [_head(document["target"])]
    for suite, modes in document["suites"].items():
        blocks += [_suite(f"{suite}, {mode}", found) for mode, found in modes.items()]
    if "divergence" in document:
        blocks.append(_divergence(document["divergence"]))
    if "tasks" in document:
        blocks.append(_tasks(document["tasks"]))
    return "\n\n".join(blocks)


def _head(target: Mapping[str, Any]) -> str:
    lossy = "; ".join(target.get("lossy", [])) or "none"
    where = f" at {target['url']}" if "url" in target else f", lossy: {lossy}"
    return f"{target['name']}{where}"


def _suite(title: str, found: Mapping[str, Any]) -> str:
    table = [[title, "n", "right", "95 %", "wrong answers"]]
    for kind, each in [*found["kinds"].items(), ("all", found["all"])]:
        low, high = each["interval"]
        score = "" if each["score"] is None else f"{each['score']:.1%}"
        words = [f"{count} {name}" for name, count in each["failures"].items()]
        words += [f"{each[name]} {name}" for name in ("errors", "skipped") if each[name]]
        if "equal" in each and each["equal"]["score"] is not None:
            words.append(f"equal to the facts {each['equal']['score']:.1%}")
        table.append([kind, str(each["n"]), score, f"{low:.1%}..{high:.1%}", ", ".join(words)])
    return align(table)


def _divergence(found: Mapping[str, Any]) -> str:
    names = ("mean_kl", "p50_kl", "p95_kl", "p99_kl", "max_kl")
    head = ["divergence", "tokens", "mean KL", "p50", "p95", "p99", "max", "same top token",
            "perplexity", "reference"]  # fmt: skip
    table = [head]
    for kind, each in [*found["kinds"].items(), ("all", found["all"])]:
        table.append([
            kind, str(each["tokens"]), *(f"{each[name]:.4g}" for name in names),
            f"{each['top1']['score']:.2%}", f"{each['perplexity']:.4f}",
            f"{each['reference_perplexity']:.4f}",
        ])  # fmt: skip
    return align(table)


def _tasks(found: Mapping[str, Any]) -> str:
    table = [["task", "n", "figure", "value", "standard error"]]
    for name, each in found.items():
        for figure, value in each["figures"].items():
            error = each["errors"].get(figure)
            table.append([name, str(each["n"]), figure, f"{value:.4f}",
                          "" if error is None else f"{error:.4f}"])  # fmt: skip
    return align(table)
