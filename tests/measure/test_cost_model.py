"""The formula of the cost of reads, and its fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headgate.stream.cost_model import CostModel, Floats, fit, relative_errors

MODEL = CostModel(latency=100e-6, stream=1e9, overhead=5e-6, bandwidth=2e9, sharpness=8.0)
MIB = 1 << 20


def grid(model: CostModel) -> tuple[Floats, Floats, Floats]:
    sizes, depths = np.meshgrid(2.0 ** np.arange(16, 25), 2.0 ** np.arange(7))
    pairs = list(zip(sizes.ravel(), depths.ravel(), strict=True))
    seconds = [size / model.bytes_per_second(size, depth) for size, depth in pairs]
    return sizes.ravel(), depths.ravel(), np.array(seconds)


def test_lone_read_costs_latency_and_its_bytes() -> None:
    alone = MODEL.seconds(1, 1e6, 1)
    assert alone == pytest.approx(100e-6 + 1e6 / 1e9, rel=0.01)
    assert MODEL.seconds(10, 1e6, 1) == pytest.approx(10 * alone)
    assert MODEL.seconds(1, 1e6, 64) == pytest.approx(alone)  # no more in flight than there are


def test_deep_queue_is_bound_by_the_drive() -> None:
    assert MODEL.seconds(1000, 1e6, 64) == pytest.approx(1000 * (5e-6 + 1e6 / 2e9), rel=0.01)
    assert MODEL.bytes_per_second(16 * MIB, 64) == pytest.approx(2e9, rel=0.01)
    assert MODEL.seconds(0, 1e6, 64) == 0


def test_no_depth_or_size_makes_reads_slower() -> None:
    for size in (4096, MIB, 16 * MIB):
        rates = [MODEL.bytes_per_second(size, depth) for depth in range(1, 65)]
        assert rates == sorted(rates)
    rates = [MODEL.bytes_per_second(size, 4) for size in range(MIB, 16 * MIB, MIB)]
    assert rates == sorted(rates)


def test_depth_for_is_the_smallest_that_is_enough() -> None:
    depth = MODEL.depth_for(MIB)
    best = MODEL.bytes_per_second(MIB, 256)
    assert MODEL.bytes_per_second(MIB, depth) >= 0.95 * best
    assert MODEL.bytes_per_second(MIB, depth - 1) < 0.95 * best
    assert MODEL.depth_for(64 * 1024) > depth > 1


@settings(deadline=None, max_examples=20)
@given(
    latency=st.floats(2e-5, 1e-3),
    stream=st.floats(2e8, 4e9),
    speedup=st.floats(1.2, 8),
    sharpness=st.floats(2, 10),
    seed=st.integers(0, 99),
)
def test_fit_describes_a_drive_of_the_formula_within_its_noise(
    latency: float, stream: float, speedup: float, sharpness: float, seed: int
) -> None:
    drive = CostModel(latency, stream, 5e-6, stream * speedup, sharpness)
    sizes, depths, seconds = grid(drive)
    noisy = seconds * np.exp(0.02 * np.random.default_rng(seed).standard_normal(len(seconds)))
    found = fit(sizes, depths, noisy)
    assert np.median(relative_errors(found, sizes, depths, seconds)) < 0.02
    assert found.bandwidth == pytest.approx(drive.bandwidth, rel=0.1)


def test_fit_of_exact_figures_is_exact() -> None:
    sizes, depths, seconds = grid(MODEL)
    found = fit(sizes, depths, seconds)
    assert relative_errors(found, sizes, depths, seconds).max() < 0.01
    assert found.latency == pytest.approx(MODEL.latency, rel=0.02)


@pytest.mark.parametrize("seconds", [[1e-3] * 4, [1e-3] * 4 + [0.0], [1e-3] * 4 + [-1.0]])
def test_too_few_or_impossible_measurements_are_refused(seconds: list[float]) -> None:
    ones = np.ones(len(seconds))
    with pytest.raises(ValueError, match="measurements"):
        fit(ones * MIB, ones, np.array(seconds))


def test_model_is_loaded_from_a_saved_probe_and_from_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    assert CostModel.load(path) is None
    for text in ("{", "[]", "{}", '{"cost_model": {"latency": 1}}', '{"cost_model": 3}'):
        path.write_text(text)
        assert CostModel.load(path) is None
    path.write_text(json.dumps({"cost_model": {**MODEL.to_dict(), "latency": -1}}))
    assert CostModel.load(path) is None
    path.write_text(json.dumps({"cost_model": MODEL.to_dict()}))
    assert CostModel.load(path) == MODEL
