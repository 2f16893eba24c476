"""When lookahead is kept, without a clock."""

from __future__ import annotations

import pytest

from headgate.stream.lookahead import HOLD, PATTERN, STRETCH, Trial


def run(trial: Trial, layers: int, without: float, with_: float) -> list[bool]:
    ways = []
    for _ in range(layers):
        ways.append(trial.on)
        trial.record(with_ if trial.on else without)
    return ways


@pytest.mark.parametrize(("without", "with_"), [(1.0, 0.9), (1.0, 1.1), (1.0, 1.0)])
def test_the_faster_way_is_kept(without: float, with_: float) -> None:
    trial = Trial()
    ways = run(trial, STRETCH * len(PATTERN) + HOLD, without, with_)
    for n, way in enumerate(PATTERN):
        assert set(ways[n * STRETCH : (n + 1) * STRETCH]) == {way}
    assert set(ways[STRETCH * len(PATTERN) :]) == {with_ < without}


def test_conditions_that_change_are_noticed_by_the_next_trial() -> None:
    trial = Trial()
    first = run(trial, STRETCH * len(PATTERN) + HOLD, 1.0, 2.0)
    second = run(trial, STRETCH * len(PATTERN) + 1, 2.0, 1.0)
    assert (first[-1], second[-1]) == (False, True)
