"""A sweep's report: the Pareto front, a Markdown table, an HTML page with drawings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from headgate.engine.budget import format_size
from headgate.evals.failures import Failure
from headgate.evals.intervals import paired_bootstrap, wilson
from headgate.evals.plots import Mark, curves, stacks
from headgate.measure.html import STYLE

Result = Mapping[str, Any]
MODES = ("free", "constrained")


def label(result: Result) -> str:
    """A point in words; of all its settings unless :func:`named` has left some out."""
    if "label" in result:
        return str(result["label"])
    knobs = result["knobs"]
    names = {"expert_bits": "{} bits", "experts_per_token": "K {}", "dense_bits": "dense {}",
             "group_size": "groups {}"}  # fmt: skip
    words = [form.format(knobs[name]) for name, form in names.items() if name in knobs]
    return ", ".join(words) or "as stored"


def named(results: Sequence[Result]) -> list[Result]:
    """The same with labels that leave out how stores were converted if all were alike."""
    alike = {
        name
        for name in ("dense_bits", "group_size")
        if len({r["knobs"][name] for r in results if name in r["knobs"]}) < 2
    }
    shown = [{k: v for k, v in r["knobs"].items() if k not in alike} for r in results]
    return [{**r, "label": label({"knobs": k})} for r, k in zip(results, shown, strict=True)]


def pooled(result: Result, mode: str) -> dict[str, Any]:
    """``{n, right, score, interval, failures}`` over all suites asked in ``mode``."""
    found = [modes[mode]["all"] for modes in result["suites"].values() if mode in modes]
    n = sum(each["n"] for each in found)
    right = sum(round(each["score"] * each["n"]) for each in found if each["n"])
    failures: Counter[str] = Counter()
    for each in found:
        failures.update(each["failures"])
    return {
        "n": n,
        "right": right,
        "score": right / n if n else None,
        "interval": list(wilson(right, n)),
        "failures": dict(failures),
        "errors": sum(each["errors"] for each in found),
        "skipped": sum(each["skipped"] for each in found),
    }


def paired(result: Result, base: Result, mode: str) -> tuple[float, float, float] | None:
    """Difference of scores to ``base`` on the prompts that both answered, with its
    interval; None if there are none."""
    mine, theirs = (_by_prompt(each, mode) for each in (result, base))
    both = [key for key in mine if key in theirs]
    if not both:
        return None
    return paired_bootstrap([mine[key] for key in both], [theirs[key] for key in both])


def _by_prompt(result: Result, mode: str) -> dict[tuple[str, str], float]:
    return {
        (suite, name): float(right)
        for suite, modes in result["outcomes"].items()
        for name, right in modes.get(mode, {}).items()
    }


def baseline(results: Sequence[Result]) -> Result:
    """The point that reads most: what the others are compared with."""
    return max(results, key=lambda r: (r["expert_bytes_per_token"], -len(r["lossy"])))


def pareto(results: Sequence[Result], quality: Callable[[Result], float | None]) -> list[Result]:
    """Points that no other one beats in both bytes per token and quality, cheapest first.

    Args:
        quality: more is better; None leaves a point out.
    """
    rated = [(r["expert_bytes_per_token"], -q, i)
             for i, r in enumerate(results) if (q := quality(r)) is not None]  # fmt: skip
    front: list[Result] = []
    best: float | None = None
    for _, cost, i in sorted(rated):
        if best is None or cost < best:
            front.append(results[i])
            best = cost
    return front


def share_right(result: Result) -> float | None:
    """Quality by answers given freely; by constrained ones where there are no others."""
    for mode in MODES:
        score = pooled(result, mode)["score"]
        if score is not None:
            return float(score)
    return None


# -- tables


def _percent(found: Mapping[str, Any]) -> str:
    if not found.get("n"):
        return ""
    low, high = found["interval"]
    return f"{found['score']:.1%} ({low:.1%}..{high:.1%})"


def _difference(result: Result, base: Result, mode: str) -> str:
    found = None if result is base else paired(result, base, mode)
    return "" if found is None else "{:+.1%} ({:+.1%}..{:+.1%})".format(*found)


def rows(results: Sequence[Result]) -> list[list[str]]:
    """The main table, its head first."""
    base = baseline(results)
    suites = list(dict.fromkeys((s, m) for r in results for s in r["suites"] for m in MODES
                                if m in r["suites"][s]))  # fmt: skip
    front = {id(r) for r in pareto(results, share_right)}
    divergence = any("divergence" in r for r in results)
    head = ["setting", "expert bytes per token", "tokens/s", *(f"{s}, {m}" for s, m in suites)]
    head += ["free, against the first", "constrained, against the first"]
    head += ["mean KL", "p95", "p99", "max", "same top token", "perplexity"] if divergence else []
    found = [[*head, "front"]]
    for r in results:
        row = [label(r), format_size(r["expert_bytes_per_token"]),
               f"{r['alone']['decode_tokens_per_s']:.3g}"]  # fmt: skip
        row += [_percent(r["suites"].get(s, {}).get(m, {}).get("all", {})) for s, m in suites]
        row += [_difference(r, base, mode) for mode in MODES]
        row += _divergence(r) if divergence else []
        found.append([*row, "yes" if id(r) in front else ""])
    used = [i for i in range(len(found[0])) if any(row[i] for row in found[1:])]
    return [[row[i] for i in used] for row in found]


def _divergence(result: Result) -> list[str]:
    if "divergence" not in result:
        return [""] * 6
    d = result["divergence"]["all"]
    low, high = d["mean_kl_interval"]
    return [
        f"{d['mean_kl']:.4f} ({low:.4f}..{high:.4f})",
        *(f"{d[name]:.3g}" for name in ("p95_kl", "p99_kl", "max_kl")),
        f"{d['top1']['score']:.2%}",
        f"{d['perplexity']:.4f}",
    ]


def kind_rows(results: Sequence[Result], mode: str) -> list[list[str]]:
    """Score of every kind of prompt at every point, the head first."""
    kinds = list(dict.fromkeys((s, k) for r in results for s, modes in r["suites"].items()
                               for k in modes.get(mode, {}).get("kinds", ())))  # fmt: skip
    found = [["suite", "kind", "n", *map(label, results)]]
    for suite, kind in kinds:
        cells = [
            r["suites"].get(suite, {}).get(mode, {}).get("kinds", {}).get(kind) for r in results
        ]
        n = max(cell["n"] for cell in cells if cell)
        shares = [f"{c['score']:.0%}" if c and c["n"] else "" for c in cells]
        found.append([suite, kind, str(n), *shares])
    return found


def markdown(results: Sequence[Result]) -> str:
    """The main table and that of all kinds."""
    results = named(results)
    base = label(baseline(results))
    parts = [_markdown(rows(results)), f"Differences are paired, against: {base}. {HOW}"]
    for mode in MODES:
        table = kind_rows(results, mode)
        if len(table) > 1:
            parts += [f"Each kind, {mode}:", _markdown(table)]
    return "\n\n".join(parts) + "\n"


HOW = (
    "Shares have 95 % Wilson intervals, differences paired bootstrap intervals over prompts, "
    "mean KL (nats) a bootstrap interval over texts. Bytes per token are those of all routed "
    "experts before any cache. Tokens/s are of one answer of 64 tokens; other points may have "
    "been measured beside it."
)


def _markdown(table: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    lines.insert(1, "|" + "---|" * len(table[0]))
    return "\n".join(lines)


# -- the page


def page(results: Sequence[Result], title: str) -> str:
    """The whole HTML file."""
    results = named(results)
    parts = [_table(rows(results)), f"<p>{escape(HOW)}</p>"]
    parts += ["<h2>Quality against bytes per token</h2>", _quality(results)]
    if any("divergence" in r for r in results):
        parts += ["<h3>Mean KL divergence, nats</h3>", _kl(results)]
    if k := _k_curve(results):
        parts += ["<h2>Quality by experts per token</h2>", k]
    for mode in MODES:
        counts = {label(r): pooled(r, mode)["failures"] for r in results if pooled(r, mode)["n"]}
        if any(counts.values()):
            parts += [f"<h2>Wrong answers by class, {mode}</h2>"]
            parts += [stacks(counts, [f.value for f in Failure])]
        table = kind_rows(results, mode)
        if len(table) > 1:
            parts += [f"<h2>Each kind, {mode}</h2>", _table(table)]
    parts += [_examples(results)]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE} td:first-child, th:first-child {{ text-align: left }}</style>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</html>\n"
    )


def _table(table: Sequence[Sequence[str]]) -> str:
    head, *body = table
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div style="overflow-x: auto"><table>{inner}</table></div>'


def _mark(result: Result, x: float, mode: str) -> Mark | None:
    found = pooled(result, mode)
    if not found["n"]:
        return None
    low, high = found["interval"]
    title = f"{label(result)}: {found['score']:.1%} of {found['n']}"
    return Mark(x, 100 * found["score"], 100 * low, 100 * high, title)


def _quality(results: Sequence[Result]) -> str:
    series: dict[str, list[Mark]] = {}
    ordered = sorted(results, key=lambda r: r["expert_bytes_per_token"])
    for mode in MODES:
        marks = [_mark(r, r["expert_bytes_per_token"] / 2**20, mode) for r in ordered]
        series[f"{mode}, all points"] = [m for m in marks if m is not None]
    front = [_mark(r, r["expert_bytes_per_token"] / 2**20, "free")
             for r in pareto(results, share_right)]  # fmt: skip
    series["Pareto front"] = [m for m in front if m is not None]
    shown = {name: marks for name, marks in series.items() if marks}
    loose = [name for name in shown if name.endswith("all points")]
    return curves(shown, "MiB of experts per token", "% right", logarithmic=True, loose=loose)


def _kl(results: Sequence[Result]) -> str:
    series: dict[str, list[Mark]] = {}
    for r in sorted(results, key=lambda r: r["expert_bytes_per_token"]):
        if "divergence" not in r:
            continue
        d = r["divergence"]["all"]
        low, high = d["mean_kl_interval"]
        mark = Mark(r["expert_bytes_per_token"] / 2**20, d["mean_kl"], low, high,
                    f"{label(r)}: {d['mean_kl']:.4g}")  # fmt: skip
        series.setdefault(_but_experts(r), []).append(mark)
    return curves(series, "MiB of experts per token", "nats", logarithmic=True)


def _k_curve(results: Sequence[Result]) -> str:
    """A line for each precision that was measured with several numbers of experts."""
    series: dict[str, list[Mark]] = {}
    for r in sorted(results, key=lambda r: r["knobs"].get("experts_per_token") or 0):
        k = r["knobs"].get("experts_per_token")
        mark = None if k is None else _mark(r, k, "free")
        if mark is not None:
            series.setdefault(_but_experts(r), []).append(mark)
    shown = {name: marks for name, marks in series.items() if len(marks) > 1}
    return curves(shown, "experts per token", "% right")


def _but_experts(result: Result) -> str:
    """A point's label without the number of experts, which goes across."""
    words = [word for word in label(result).split(", ") if not word.startswith("K ")]
    return ", ".join(words) or "as stored"


def _examples(results: Sequence[Result]) -> str:
    parts = ["<h2>Examples of wrong answers</h2>"]
    for r in results:
        found = {
            f"{s}, {m}": modes[m]["examples"] for s, modes in r["suites"].items() for m in modes
        }
        text = escape(json.dumps(found, indent=1, ensure_ascii=False))
        parts.append(f"<details><summary>{escape(label(r))}</summary><pre>{text}</pre></details>")
    return "".join(parts)
