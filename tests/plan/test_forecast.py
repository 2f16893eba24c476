"""The formula: its parts against hand computation, and how it moves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.errors import ResourceError, UsageError
from headgate.measure.routes import generate_trace
from headgate.plan.calibrate import Calibration
from headgate.plan.find import find
from headgate.plan.forecast import Forecast, Interval, Setting, rate_for
from headgate.plan.hits import Hits, Routing, clusters, expected, needed
from headgate.plan.machine import Machine, from_document, save, saved_machine
from headgate.plan.planner import Wish, plan
from headgate.plan.replay import Counts
from headgate.plan.report import text
from tests.plan.machines import document

GIB = 1 << 30


@pytest.fixture(scope="module")
def machine() -> Machine:
    return from_document(document(), "test")


def forecast(machine: Machine, share: float = 0.3, **changes: Any) -> Forecast:
    setting = Setting(**{"bits": 4, "k": 8, "share": share, "chunk": 256, **changes})
    return Forecast(find("qwen3.5-35b-a3b"), machine, setting)


def test_token_with_everything_in_memory_is_the_sum_of_its_products(machine: Machine) -> None:
    f, m, r = forecast(machine, share=1.0), find("qwen3.5-35b-a3b"), machine.rates
    products = m.dense.coded / 20e9 + m.dense.plain / 10e9
    products += 40 * 8 * 3 * 2048 * 512 / 20e9
    state = m.state_fixed * 1e-10 + 2 * 512 * m.state_per_token / 40e9
    fixed = r.token_s + 40 * r.layer_s + 40 * 8 * r.hit_s
    assert f.token.drive == 0 and f.bytes_per_token == 0
    assert f.token.total == pytest.approx(products + state + fixed)
    assert f.decode.value == pytest.approx(1 / f.token.total)


def test_token_with_nothing_in_memory_waits_for_every_read(machine: Machine) -> None:
    f = forecast(machine)
    f.hits = Hits(0.0, 1.0, "uniform routes")
    m, r = f.model, machine.rates
    shared = m.dense.shared / 40 / 20e9
    product = 3 * 2048 * 512 / 20e9
    reads = f.read_s(8)
    assert reads > shared + 7 * product  # the drive is what is waited for
    assert f.token.drive == pytest.approx(40 * (reads + product - shared - 8 * product))
    assert f.bytes_per_token == 40 * 8 * m.layout(4).prefix_bytes(4)
    checks = 40 * 8 * m.layout(4).prefix_bytes(4) / 8e9
    assert f.token.fixed == pytest.approx(
        r.token_s + 40 * (r.layer_s + r.wake_s) + 40 * 8 * (r.hit_s + r.miss_s) + checks
    )


def test_interval_holds_the_value_and_widens_with_the_drives_spread(machine: Machine) -> None:
    found = forecast(machine, share=0.05).decode
    assert 0 < found.low < found.value < found.high
    wider = forecast(replace(machine, drive_spread=0.5), share=0.05).decode
    assert wider.value == found.value and wider.low < found.low and wider.high > found.high
    assert Interval.around(2.0, 0.0) == Interval(2.0, 2.0, 2.0)


def test_more_memory_fewer_experts_fewer_bits_and_better_parts_are_faster(machine: Machine) -> None:
    base = forecast(machine, share=0.2).decode.value
    for better in (
        forecast(machine, share=0.6),
        forecast(machine, share=0.2, k=4),
        forecast(machine, share=0.2, bits=2),
        forecast(machine.faster(drive=2), share=0.2),
        forecast(machine.faster(memory=2), share=0.2),
        forecast(machine.faster(cores=2), share=0.2),
    ):
        assert better.decode.value > base


def test_prompt_in_chunks_adds_up(machine: Machine) -> None:
    f = forecast(machine)
    assert f.prompt_seconds(512).total == pytest.approx(2 * f.prompt_seconds(256).total)
    assert f.prompt(512).value == pytest.approx(512 / f.first_token(512).value)
    # A chunk reads an expert once for all its tokens.
    assert f.prompt_seconds(256).total < 64 * f.token.total


def test_rates_between_those_measured() -> None:
    rates = {1: 10.0, 4: 40.0, 16: 40.0}
    assert rate_for(rates, 0.5) == rate_for(rates, 1) == 10
    assert rate_for(rates, 2) == pytest.approx(20)
    assert rate_for(rates, 8) == pytest.approx(40) and rate_for(rates, 1e6) == 40


# Hit rates --------------------------------------------------------------------


def test_uniform_routes_hit_the_share_that_is_cached() -> None:
    for share in (0.1, 0.3, 0.6):
        assert expected("uniform", 256, 8, share).rate == pytest.approx(share, abs=0.04)
    assert expected("uniform", 256, 8, 1.0).rate == 1


def test_published_routes_hit_more_than_uniform_ones() -> None:
    for share in (0.1, 0.3):
        assert expected("published", 256, 8, share).rate > share + 0.1


@pytest.mark.parametrize("routing", ["published", "uniform"])
def test_needed_experts_grow_with_the_chunk(routing: Routing) -> None:
    shares = [needed(routing, 256, 8, tokens) for tokens in (1, 16, 128)]
    assert shares[0] == pytest.approx(8 / 256) and shares[0] < shares[1] < shares[2] <= 1


def test_published_routes_of_another_seed_need_as_many() -> None:
    trace = generate_trace(128, 4, 256, 8, seed=5)
    found = np.mean([len(np.unique(trace[:, layer])) for layer in range(4)]) / 256
    assert needed("published", 256, 8, 128) == pytest.approx(found, abs=0.08)


# Machines ---------------------------------------------------------------------


def test_saved_machine_is_the_same(tmp_path: Path, machine: Machine) -> None:
    save(document(), tmp_path / "m.json")
    again = saved_machine(tmp_path / "m.json", print)
    assert replace(again, name="") == replace(machine, name="")
    with pytest.raises(ResourceError, match="cannot write"):
        save({}, tmp_path / "absent" / "m.json")


def test_faster_parts_change_their_rates_alone(machine: Machine) -> None:
    drive = machine.faster(drive=3)
    assert drive.drive.bandwidth == 3 * machine.drive.bandwidth
    assert drive.rates.experts[4] == pytest.approx(machine.rates.experts[4])
    both = machine.faster(memory=2, cores=2).rates
    for bits, by in both.experts.items():
        for tokens, rate in by.items():
            assert rate == pytest.approx(2 * machine.rates.experts[bits][tokens])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
        ("{}", "describes no machine"),
        ('{"drive_bytes_per_s": 1, "x": 2}', "describes no machine"),
        ('{"drive_bytes_per_s": -1}', "expected a positive number"),
        ('{"cores": true}', "expected a positive number"),
        (json.dumps(document(cost_model={})), "not a whole machine file"),
        (json.dumps(document(calibration={})), "not a whole machine file"),
        (json.dumps(document(calibration=None)), "not a whole machine file"),
        (json.dumps(document(memory=[])), "not a whole machine file"),
    ],
)
def test_unusable_machine_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        saved_machine(tmp_path / "m.json", print)


def test_calibration_keeps_its_figures_through_json() -> None:
    found = Calibration.from_dict(document()["calibration"])
    assert Calibration.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Plans ------------------------------------------------------------------------


def test_plan_of_a_large_model_on_a_small_machine(machine: Machine) -> None:
    found = plan(find("Qwen3.5-397B-A17B"), machine, Wish(budgets=[8 * GIB, 24 * GIB]))
    raw = found.to_dict()
    small, large = ([row for row in raw["rows"] if row["budget_bytes"] == n * GIB] for n in (8, 24))
    assert not any(row["fits"] for row in small) and all(row["fits"] for row in large)
    assert all(11 * GIB < row["smallest_budget_bytes"] < 14 * GIB for row in small)
    assert large[0]["expert_bits"] == 2 and large[2]["expert_bits"] == 4
    assert large[2]["limit"] == "drive"
    assert raw["recommended"]["expert_bits"] == 4 and not raw["recommended"]["lossy"]
    assert raw["command"][0].startswith("headgate convert Qwen3.5-397B-A17B")
    assert raw["command"][1].endswith("--memory 24G")
    assert "limit" in text(found) and "does not fit" in text(found)
    json.dumps(raw)


def test_row_says_what_is_lossy(machine: Machine) -> None:
    found = plan(find("qwen3.5-35b-a3b"), machine, Wish(bits=[4], budgets=[8 * GIB]))
    assert [row.lossy for row in found.rows] == [(), ("experts-per-token 4 (trained 8)",)]


def test_memory_that_brings_nothing_is_not_recommended(machine: Machine) -> None:
    found = plan(find("qwen3.5-35b-a3b"), machine, Wish(budgets=[28 * GIB, 31 * GIB], bits=[4]))
    assert found.best is not None and found.best.budget == 28 * GIB


def test_nothing_that_fits_is_said_with_the_least_that_would(machine: Machine) -> None:
    found = plan(find("qwen3.5-35b-a3b"), machine, Wish(budgets=[GIB]))
    assert found.best is None and not found.command
    assert "nothing fits; the smallest budget that works is" in text(found)


def test_budget_is_divided_as_the_engine_divides_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this process has grown to meanwhile."""
    slots = set()
    for resident in (40 << 20, 400 << 20):
        monkeypatch.setattr("headgate.engine.budget.resident_bytes", lambda n=resident: n)
        found = plan(find("qwen3.5-35b-a3b"), machine, Wish(bits=[4], budgets=[8 * GIB]))
        assert found.rows[0].division is not None
        slots.add(found.rows[0].division.slots)
    assert len(slots) == 1


def test_unsupported_model_gets_a_forecast_and_no_command(machine: Machine) -> None:
    found = plan(find("Mixtral-8x7B"), machine, Wish())
    assert found.best is not None and not found.command
    assert "does not have mixtral" in text(found) and "recommended budget" in text(found)
    assert found.to_dict()["model"]["exact"] is False


def test_changes_are_ordered_by_what_they_bring(machine: Machine) -> None:
    found = plan(find("qwen3.5-397b-a17b"), machine, Wish(bits=[4], budgets=[24 * GIB]))
    gains = [gain for _, gain, _ in found.changes]
    assert gains == sorted(gains, reverse=True) and all(math.isfinite(gain) for gain in gains)
    best = {what: gain for what, gain, _ in found.changes}
    assert best["a drive twice as fast"] > 1.5 > best["cores twice as fast"]


@pytest.mark.parametrize(
    "wish",
    [Wish(context=0), Wish(prompt=9000), Wish(experts_per_token=[999]), Wish(context=1 << 30)],
    ids=str,
)
def test_what_cannot_be_is_refused(machine: Machine, wish: Wish) -> None:
    with pytest.raises(UsageError):
        plan(find("qwen3.5-35b-a3b"), machine, wish)


def test_misses_come_as_often_as_they_did_and_another_rate_mixes_in_whole_layers() -> None:
    hits = Hits(0.5, 0.0, "a trace of this model", (0.4, 0.1, 0.1, 0.4))
    assert hits.chances(3) == [0.4, 0.1, 0.1, 0.4]
    for rate in (0.1, 0.45, 0.55, 0.9):
        found = hits.chances(3, rate)
        assert sum(found) == pytest.approx(1)
        assert sum(i * share for i, share in enumerate(found)) == pytest.approx(3 * (1 - rate))
    assert hits.chances(3, 0.0) == [0, 0, 0, 1] and hits.chances(3, 1.0) == [1, 0, 0, 0]
    # Where nothing is known, one by one.
    assert hits.chances(2) == Hits(0.5, 0.0, "").chances(2) == [0.25, 0.5, 0.25]


def test_clusters_of_misses_are_counted_in_generated_tokens() -> None:
    counts = Counts([2, 1, 0, 2], [0, 1, 2, 0], 0)
    assert clusters(counts, [False, True, True, True], 2) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
