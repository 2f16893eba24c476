"""The ledger as text and as tab-separated values."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from headgate.lab.experiment import Experiment, Measurement
from headgate.lab.knobs import describe_knobs
from headgate.lab.verdict import pairs_of
from headgate.measure.report import align

#: Order of the words in every summary.
VERDICTS = ("kept", "discarded", "void", "open")

EXPERIMENT_COLUMNS = (
    "id", "created", "kind", "campaign", "parent", "verdict", "ratio", "low", "high", "pairs",
    "metric", "hypothesis", "why", "baseline", "candidate", "protocol", "store", "machine",
    "result", "finished",
)  # fmt: skip
MEASUREMENT_COLUMNS = ("experiment", "pair", "position", "side", "started", "value", "counted",
                       "tokens", "raw")  # fmt: skip


def verdict_of(experiment: Experiment) -> str:
    """Its verdict, or ``open``."""
    return experiment.verdict or "open"


def table(experiments: Sequence[Experiment]) -> str:
    """One line for each."""
    rows = [["id", "kind", "verdict", "ratio", "95 %", "pairs", "hypothesis"]]
    for e in experiments:
        r = e.result
        known = e.ratio is not None
        rows.append(
            [
                str(e.id),
                e.proposal.kind,
                verdict_of(e),
                f"{r['ratio']:.3f}" if known else "",
                f"{r['low']:.3f}..{r['high']:.3f}" if known else "",
                str(r.get("pairs", "")),
                _short(e.proposal.hypothesis),
            ]
        )
    lines = align([row[:-1] for row in rows]).splitlines()
    # Words begin at the left.
    width = max(map(len, lines))
    full = [f"{line.ljust(width)}  {row[-1]}" for line, row in zip(lines, rows, strict=True)]
    return "\n".join([*full, counts(experiments)])


def counts(experiments: Sequence[Experiment]) -> str:
    """How many of each verdict."""
    found = [verdict_of(e) for e in experiments]
    return ", ".join(f"{found.count(v)} {v}" for v in VERDICTS if found.count(v)) or "none yet"


def details(experiment: Experiment, measurements: Sequence[Measurement]) -> str:
    """Everything about one experiment, every pair included."""
    e, p = experiment, experiment.proposal
    m, protocol = p.machine, p.protocol
    lines = [
        f"experiment {e.id}: {verdict_of(e)}" + (f": {e.why}" if e.why else ""),
        f"hypothesis  {p.hypothesis}",
        f"baseline    {p.baseline}",
        f"candidate   {p.candidate}",
        f"protocol    {describe_protocol(experiment)}",
        f"store       {p.store.get('path')} ({p.store.get('key')})",
        f"machine     {m.get('cpu')}, {m.get('cores')} cores ({m.get('key')}), "
        f"headgate {m.get('headgate')} ({m.get('program')})",
        f"begun       {stamp(e.created)}" + (f" as part of {p.campaign}" if p.campaign else ""),
    ]
    if protocol.memory:
        lines.append(f"memory      {protocol.memory / 2**30:.3g} GiB")
    pairs = pairs_of(measurements)
    first = {m.pair: m.side for m in measurements if m.counted and m.position == 0}
    rows = [["pair", "first", "A", "B", "B / A"]]
    for number, pair in pairs.items():
        a, b = pair.a.value, pair.b.value
        rows.append(
            [str(number + 1), first.get(number, ""), f"{a:.4g}", f"{b:.4g}", f"{b / a:.3f}"]
        )
    if len(rows) > 1:
        lines += ["", align(rows)]
    if "quality" in e.result:
        lines += ["", *_quality(e.result["quality"])]
    if p.candidate.code is not None and p.candidate.code.patch:
        lines += ["", p.candidate.code.patch.rstrip()]
    return "\n".join(lines)


def describe_protocol(experiment: Experiment) -> str:
    """In words."""
    p = experiment.proposal.protocol
    guard = "identical tokens" if p.exact else f"no quality suite loses more than {p.max_loss:.1%}"
    return (
        f"{p.metric}, prompt {p.prompt_tokens}, generation {p.generated_tokens}, "
        f"{'warm' if p.warm else 'cold'}, {'own' if p.greedy else 'random'} tokens, "
        f"up to {p.pairs} pairs, gain above {p.min_gain:.1%}, {guard}"
    )


def _quality(found: dict[str, Any]) -> Iterator[str]:
    for suite, f in found.items():
        yield (
            f"quality of {suite}: {f['difference']:+.1%} "
            f"({f['low']:+.1%} to {f['high']:+.1%}, n {f['n']})"
        )


def stamp(seconds: float | None) -> str:
    """A time, in UTC."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))


def experiments_tsv(experiments: Sequence[Experiment]) -> Iterator[str]:
    """Lines of a table of experiments."""
    yield _line(EXPERIMENT_COLUMNS)
    for e in experiments:
        p, r = e.proposal, e.result
        figures = [r.get(name) for name in ("ratio", "low", "high", "pairs")]
        yield _line(
            [
                e.id,
                stamp(e.created),
                p.kind,
                p.campaign,
                p.parent,
                verdict_of(e),
                *figures,
                p.protocol.metric,
                p.hypothesis,
                e.why,
                *(_json(s.to_dict()) for s in (p.baseline, p.candidate)),
                _json(p.protocol.to_dict()),
                _json(p.store),
                _json(p.machine),
                _json(r),
                stamp(e.finished),
            ]
        )


def measurements_tsv(measurements: Sequence[Measurement]) -> Iterator[str]:
    """Lines of a table of every measured process."""
    yield _line(MEASUREMENT_COLUMNS)
    for m in measurements:
        s = m.sample
        yield _line([m.experiment, m.pair, m.position, m.side, stamp(m.started), s.value,
                     int(m.counted), _json(s.tokens), _json(s.raw)])  # fmt: skip


def _line(cells: Sequence[object]) -> str:
    return "\t".join("" if cell is None else _cell(str(cell)) for cell in cells)


def _cell(text: str) -> str:
    """Without what would end a cell or a line."""
    for plain, escaped in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(plain, escaped)
    return text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:69] + "…"


def changes(experiment: Experiment) -> str:
    """What the candidate has that the baseline has not."""
    p = experiment.proposal
    if p.candidate.code is not None and p.candidate.code != p.baseline.code:
        return str(p.candidate.code)
    before = p.baseline.knobs
    new = {n: v for n, v in p.candidate.knobs.items() if n not in before or before[n] != v}
    return describe_knobs(new)
