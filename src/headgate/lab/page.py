"""The ledger as one HTML file. Needs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from headgate.lab.chart import chart, series
from headgate.lab.experiment import Experiment
from headgate.lab.report import changes, counts, describe_protocol, stamp, verdict_of
from headgate.measure.html import STYLE

OWN_STYLE = """
td, th { text-align: left; vertical-align: top } td.n { text-align: right; white-space: nowrap }
.kept { color: #1b7f34; font-weight: 600 } .discarded { color: #666 } .void { color: #b3261e }
"""


def page(experiments: Sequence[Experiment], ledger: str) -> str:
    """The whole file."""
    parts = [f"<p>{escape(ledger)}: {len(experiments)} experiments: {counts(experiments)}</p>"]
    for name, found in series(experiments).items():
        machine = found[-1].proposal.machine
        parts += [
            f"<h2>{escape(name)}</h2>",
            f"<p>{escape(str(machine.get('cpu')))}, {machine.get('cores')} cores; "
            f"{escape(describe_protocol(found[-1]))}</p>",
            chart(name, found),
            _table(found),
        ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>headgate lab</title>'
        f"<style>{STYLE}{OWN_STYLE}</style><h1>headgate lab</h1>{''.join(parts)}</html>\n"
    )


def _table(experiments: Sequence[Experiment]) -> str:
    heads = ("", "begun", "kind", "hypothesis", "change", "ratio", "95 %", "pairs", "verdict",
             "why")  # fmt: skip
    rows = ["".join(f"<th>{head}</th>" for head in heads)]
    rows += [_row(e) for e in experiments]
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _row(e: Experiment) -> str:
    r, verdict = e.result, verdict_of(e)
    known = e.ratio is not None and "low" in r
    patch = e.proposal.candidate.code.patch if e.proposal.candidate.code else ""
    change = escape(changes(e))
    if patch:
        change = f"<details><summary>{change}</summary><pre>{escape(patch)}</pre></details>"
    cells = [
        f'<td class="n">{e.id}</td>',
        f"<td>{stamp(e.created)}</td>",
        f"<td>{escape(e.proposal.kind)}</td>",
        f"<td>{escape(e.proposal.hypothesis)}</td>",
        f"<td>{change}</td>",
        f'<td class="n">{e.ratio:.3f}</td>' if known else "<td></td>",
        f'<td class="n">{r["low"]:.3f}..{r["high"]:.3f}</td>' if known else "<td></td>",
        f'<td class="n">{r.get("pairs", "")}</td>',
        f'<td class="{verdict}">{verdict}</td>',
        f"<td>{escape(e.why)}</td>",
    ]
    return "".join(cells)
