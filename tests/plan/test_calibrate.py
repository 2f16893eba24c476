"""A calibration measures, is kept, and is not kept when the machine was busy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headgate.paths import cache_folder
from headgate.plan import calibrate
from headgate.plan.calibrate import Calibration, calibration, measure
from tests.plan.machines import document


def test_every_figure_is_measured_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "ARENA_BYTES", 16 << 20)
    monkeypatch.setattr(calibrate, "ROUNDS", 2)
    monkeypatch.setattr(calibrate, "TOKENS", (1, 8))
    found = measure()
    assert set(found.experts) == {2, 3, 4, 8, 16} and set(found.dense) == {8, 16}
    assert all(set(by) == {1, 8} for by in (*found.experts.values(), *found.dense.values()))
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert 0 <= found.others <= 1


def test_calibration_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Calibration.from_dict(document()["calibration"])
    asked: list[int] = []

    def fake(others: float) -> Calibration:
        asked.append(1)
        return replace(found, others=others)

    saved = cache_folder() / "calibration.json"
    saved.unlink(missing_ok=True)
    monkeypatch.setattr(calibrate, "measure", lambda: fake(0.5))
    assert calibration().others == 0.5 and not saved.exists()
    monkeypatch.setattr(calibrate, "measure", lambda: fake(0.0))
    assert calibration() == calibration() == found
    assert len(asked) == 2
    for damage in ("{", "[]", '{"owner": 3}'):
        saved.write_text(damage)
        assert calibration() == found
    assert len(asked) == 5
    saved.unlink()
