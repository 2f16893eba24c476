"""From logits to tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from headgate.engine import Sampler, Sampling
from headgate.errors import UsageError

LOGITS = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05], np.float32))
ALL = np.ones(5, np.bool_)


def draw(count: int = 4000, **options: Any) -> dict[int, float]:
    options = {"temperature": 1.0, "seed": 1, **options}
    sampler = Sampler(Sampling(**options), ALL)
    counts = Counter(sampler.choose(LOGITS, []) for _ in range(count))
    return {token: n / count for token, n in counts.items()}


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    assert Sampler(Sampling(), ALL).choose(LOGITS, []) == 0
    allowed = np.array([False, True, True, True, True])
    assert Sampler(Sampling(), allowed).choose(LOGITS, []) == 1


def test_padding_rows_are_never_drawn() -> None:
    allowed = np.array([True, False, True, False, True])
    sampler = Sampler(Sampling(temperature=5.0, seed=3), allowed)
    assert {sampler.choose(LOGITS, []) for _ in range(300)} == {0, 2, 4}


def test_temperature_one_draws_the_distribution() -> None:
    found = draw()
    for token, p in enumerate([0.5, 0.2, 0.15, 0.1, 0.05]):
        assert found[token] == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-40, 1e-7, 1e-5])
def test_hardly_any_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = np.array([-3e4, 1.0, 2e4, 1.5e4, -np.inf], np.float32)
    sampler = Sampler(Sampling(temperature=temperature, seed=1), np.ones(5, np.bool_))
    assert [sampler.choose(logits, []) for _ in range(5)] == [2] * 5


def test_low_temperature_sharpens() -> None:
    p = np.array([0.5, 0.2, 0.15, 0.1, 0.05]) ** 2
    assert draw(temperature=0.5)[0] == pytest.approx(p[0] / p.sum(), abs=0.03)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),
        ({"top_k": 4, "top_p": 0.9}, {0, 1, 2, 3}),
        ({"top_k": 1}, {0}),
    ],
)
def test_truncation_keeps(options: dict[str, Any], kept: set[int]) -> None:
    assert set(draw(**options)) == kept


def test_repetition_penalty_demotes_what_was_said() -> None:
    logits = np.array([2.0, 1.5, -1.0], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=2.0), np.ones(3, np.bool_))
    assert sampler.choose(logits, [0]) == 1
    assert sampler.choose(logits, [0, 1]) == 0
    assert logits[0] == 2.0  # the caller's array is left alone


def test_presence_and_frequency_penalties_are_subtracted() -> None:
    logits = np.array([2.0, 1.5, 1.0], np.float32)
    every = np.ones(3, np.bool_)
    presence = Sampler(Sampling(presence_penalty=0.75), every)
    assert presence.choose(logits, [], {}) == 0
    assert presence.choose(logits, [], {0: 1}) == 1
    assert presence.choose(logits, [], {0: 9, 1: 1}) == 0  # once, however often
    frequency = Sampler(Sampling(frequency_penalty=0.3), every)
    assert [frequency.choose(logits, [], {0: n}) for n in (1, 2)] == [0, 1]
    assert Sampler(Sampling(frequency_penalty=-2), every).choose(logits, [], {2: 1}) == 2


def test_logit_bias_is_added() -> None:
    logits = np.array([2.0, 1.5, 1.0], np.float32)
    every = np.ones(3, np.bool_)
    assert Sampler(Sampling(logit_bias={2: 1.5}), every).choose(logits, []) == 2
    banned = Sampler(Sampling(temperature=1, seed=1, logit_bias={0: -100}), every)
    assert {banned.choose(logits, []) for _ in range(100)} == {1, 2}
    with pytest.raises(UsageError, match="outside the vocabulary"):
        Sampler(Sampling(logit_bias={3: 1}), every)


def test_mask_bounds_the_choice() -> None:
    mask = np.array([False, False, True, True, False])
    sampler = Sampler(Sampling(temperature=1, seed=1), ALL)
    assert {sampler.choose(LOGITS, [], mask=mask) for _ in range(100)} == {2, 3}
    with pytest.raises(UsageError, match="no token"):
        sampler.choose(LOGITS, [], mask=np.zeros(5, np.bool_))


def test_seed_repeats_the_draws() -> None:
    first, second = (
        [Sampler(Sampling(temperature=1, seed=7), ALL).choose(LOGITS, []) for _ in range(5)]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {1: 101}},
        {"logit_bias": {-1: 1}},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Sampling(**options)
