"""What lossy settings cost, on the embedded demo model: the main table of docs/quality.md.

    python benchmarks/quality.py                 # all points, under 20 minutes on 2 cores
    python benchmarks/quality.py --limit 1       # a glance

Converts the demo's checkpoint as its points need it, measures them in one process for each
core, and writes report.md and report.html to --out. The same command resumes. Its last
line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from headgate.cli.sweep import Stores
from headgate.demo import CHECKPOINT
from headgate.evals import report
from headgate.evals.point import Plan
from headgate.evals.sweep import Knobs, Point, Sweep
from headgate.measure.machine import core_count, describe_machine

#: Prompts of each kind. More would not fit the time that is promised.
LIMIT = 6
TRAINED = 8
POINTS = [
    # precision, with every expert that the model was trained with
    *(Knobs(bits, TRAINED, 16, None if bits == 16 else 64) for bits in (16, 8, 4, 3, 2)),
    # experts per token, in full precision
    *(Knobs(16, k, 16) for k in (6, 4, 3, 2, 1)),
    # both
    Knobs(4, 4, 16, 64),
    Knobs(2, 4, 16, 64),
    # what `headgate convert` makes unless told otherwise
    Knobs(4, TRAINED, 8, 64),
    # groups
    Knobs(2, TRAINED, 16, 32),
    Knobs(2, TRAINED, 16, 128),
]


def main() -> None:
    ap = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    ap.add_argument("--out", type=Path, default=Path("build/quality"))
    ap.add_argument("--limit", type=int, default=LIMIT, help="prompts of each kind")
    ap.add_argument("--points", type=int, help="only the first so many")
    ap.add_argument("--jobs", type=int, default=core_count(), help="processes at a time")
    a = ap.parse_args()
    begin = time.monotonic()
    stores = Stores(CHECKPOINT, a.out)
    points = [Point(knobs, stores.of(knobs)) for knobs in POINTS[: a.points]]
    sweep = Sweep(a.out, points, stores.make(16, 16, None), Plan(limit=a.limit), threads=1)
    sweep.run(a.jobs, lambda words: print(words, file=sys.stderr, flush=True))
    results = sweep.results()
    text = report.markdown(results)
    (a.out / "report.md").write_text(text, encoding="utf-8")
    page = report.page(results, "Quality of the demo model under lossy settings")
    (a.out / "report.html").write_text(page, encoding="utf-8")
    print(text)
    seconds = time.monotonic() - begin
    print(json.dumps({"seconds": seconds, "machine": describe_machine(),
                      "table": report.rows(report.named(results))}))  # fmt: skip


if __name__ == "__main__":
    main()
