"""Figures that are kept beside a store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headgate.evals import gate
from headgate.store import Store, verify
from tests.conftest import DemoStore
from tests.evals.results import result


@pytest.fixture
def store(demo_store: DemoStore, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(demo_store(4), tmp_path / "demo.headgate"))


def test_nothing_measured_is_said(store: Store) -> None:
    line = gate.describe(store, {"expert_bits": 2})
    assert "has not been measured" in line
    assert "headgate sweep demo.headgate" in line


def test_measured_figures_are_given_for_these_settings_only(store: Store) -> None:
    gate.record(store, [result(2, 8, 10, "yyyn", 0.25)])
    line = gate.describe(store, {"expert_bits": 2, "experts_per_token": None})
    assert "tools free 75.0% (30.1% to 95.4%, n 4)" in line
    assert "mean KL 0.2500" in line
    assert "\n" not in line
    assert line == gate.describe(store, {"expert_bits": 2, "experts_per_token": 8, "backend": "x"})
    other = gate.describe(store, {"expert_bits": 3})
    assert "has not been measured" in other
    assert "1 other settings" in other


def test_another_sweep_adds_points_and_replaces_those_of_the_same_settings(store: Store) -> None:
    gate.record(store, [result(2, 8, 10, "yyyn"), result(3, 8, 10, "yyyy")])
    gate.record(store, [result(2, 8, 10, "nnnn")])
    assert len(gate.measured(store)) == 2
    assert "tools free 0.0%" in gate.describe(store, {"expert_bits": 2})
    assert "tools free 100.0%" in gate.describe(store, {"expert_bits": 3})


def test_store_stays_whole_with_figures_beside_it(store: Store) -> None:
    gate.record(store, [result(2, 8, 10, "yyyn")])
    opened = Store.open(store.path)
    assert list(verify(opened)) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1, "points": [1]}', "null"])
def test_damaged_figures_are_none(store: Store, content: str) -> None:
    (store.path / gate.FILE).write_text(content)
    assert gate.measured(store) == []
    assert "has not been measured" in gate.describe(store, {})


def test_figures_of_another_conversion_are_none(store: Store, demo_store: DemoStore) -> None:
    gate.record(store, [result(2, 8, 10, "yyyn")])
    other = shutil.copytree(demo_store(8), store.path.parent / "other.headgate")
    shutil.copy(store.path / gate.FILE, other / gate.FILE)
    assert gate.measured(Store.open(other)) == []


def test_point_without_figures_of_a_suite_is_described(store: Store) -> None:
    gate.record(store, [result(2, 8, 10, "ee", 0.5)])
    assert "mean KL 0.5000" in gate.describe(store, {"expert_bits": 2})
