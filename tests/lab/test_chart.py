"""Progress: what was kept, and the best so far."""

from __future__ import annotations

from dataclasses import replace

from headgate.lab.chart import best_so_far, chart, points, series
from headgate.lab.experiment import Experiment, Kind, Verdict
from tests.lab.machines import proposal


def experiment(
    id: int, ratio: float, verdict: Verdict, parent: int | None = None, kind: Kind = "round"
) -> Experiment:
    asked = replace(proposal(), kind=kind, parent=parent)
    result = {"ratio": ratio, "low": ratio - 0.05, "high": ratio + 0.05}
    return Experiment(id, asked, 0.0, verdict, "", result)


def test_gains_of_rounds_multiply_along_the_chain() -> None:
    found = points(
        [
            experiment(1, 1.10, "kept"),
            experiment(2, 1.50, "discarded", 1),
            experiment(3, 1.20, "kept", 1),
            experiment(4, 0.90, "discarded", 3),
        ]
    )
    assert [round(p.speed, 4) for p in found] == [1.1, 1.65, 1.32, 1.188]
    assert [round(x, 4) for x in best_so_far(found)] == [1.1, 1.1, 1.32, 1.32]


def test_validation_is_compared_with_the_baseline_as_its_trial_was() -> None:
    found = points([experiment(1, 1.3, "kept", kind="trial"),
                    experiment(2, 1.2, "kept", 1, "validation")])  # fmt: skip
    assert [p.speed for p in found] == [1.3, 1.2]


def test_experiments_on_other_stores_are_drawn_apart() -> None:
    one = experiment(1, 1.1, "kept")
    other = replace(one, proposal=replace(one.proposal, store={"path": "/x/y.headgate"}))
    assert [len(found) for found in series([one, other, one]).values()] == [2, 1]


def test_chart_of_one_and_of_wild_figures_is_drawn() -> None:
    for ratios in ([1.0], [0.01, 30.0], [1e-6, 1e6]):
        drawn = chart("t", [experiment(i + 1, r, "kept") for i, r in enumerate(ratios)])
        assert drawn.count("<circle") == len(ratios) and "nan" not in drawn
