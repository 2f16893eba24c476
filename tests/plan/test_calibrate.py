"""A calibration measures, is kept, and is not kept when the machine was busy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headgate.paths import cache_folder
from headgate.plan import calibrate, in_engine
from headgate.plan.calibrate import Calibration, calibration, measure
from headgate.plan.find import find
from tests.plan.machines import document


def test_every_figure_is_measured_and_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "ARENA_BYTES", 16 << 20)
    monkeypatch.setattr(calibrate, "ROUNDS", 2)
    monkeypatch.setattr(in_engine, "ROUNDS", 1)
    monkeypatch.setattr(in_engine, "TOKENS", 3)
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


def test_figures_of_single_tokens_are_what_a_token_divides_into() -> None:
    model = find("qwen3.5-35b-a3b")
    layers, k, weights = model.layers, model.experts_per_token, 3 * 2048 * 512
    token = in_engine._Token(0.02, 0.01, 0.0, 0.003, 0, 0.04)
    at = {bits: token for bits in in_engine.BITS}
    few = in_engine._Token(0.02, 0.003, 0.0, 0.003, 0, 0.04 - 0.007 - 0.0024)
    some = in_engine._Token(0.02, 0.011, 0.01, 0.003, 80, 0.04 + 0.01 + 0.012)
    none = in_engine._Token(0.02, 0.012, 0.05, 0.003, 320, 0.04 + 0.05 + 0.016)
    found = in_engine._figures(model, at, few, some, none)
    assert found.dense == pytest.approx(model.dense.coded / 0.02)
    assert found.experts[4] == pytest.approx(layers * k * weights / 0.01)
    assert found.hit_s == pytest.approx(0.0024 / (layers * (k - 2)))
    assert found.layer_s == pytest.approx(0.007 / layers - k * found.hit_s)
    assert found.miss_s == pytest.approx(0.004 / 240)
    assert found.wake_s == pytest.approx((0.016 - 320 * found.miss_s) / layers)
