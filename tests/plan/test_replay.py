"""Replays: figures by hand, reports, drawings, and the commands."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headgate.cli.plan import plan
from headgate.engine import Engine
from headgate.errors import HeadgateError, UsageError
from headgate.measure.trace import TraceRecorder
from headgate.plan.replay import Demand, demands, policy_for, simulate
from headgate.plan.replay_html import page
from headgate.plan.replay_report import Speed, report, reuse_distances, text, uses
from headgate.plan.trace_file import Trace, load
from headgate.stream import CostModel, ExpertStream, StreamOptions
from tests.cli.test_run import headgate
from tests.conftest import DemoStore
from tests.plan.machines import document

DRIVE = CostModel.from_dict(document()["cost_model"])


@pytest.fixture(scope="module")
def trace_file(demo_store: DemoStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt of 20 tokens and 25 generated."""
    path = tmp_path_factory.mktemp("trace") / "t.arrow"
    engine = Engine.load(demo_store(4, 8))
    with TraceRecorder(path) as recorder:
        engine.experts = ExpertStream(engine.store, engine.ops, 50, 4, StreamOptions(), recorder)
        list(engine.new_session().generate(list(range(1, 21)), 26, stop=frozenset()))
    return path


@pytest.fixture(scope="module")
def trace(trace_file: Path) -> Trace:
    return load(trace_file)


def demand(layer: int, *experts: int) -> Demand:
    return Demand(layer, 1, [((layer, expert), 1) for expert in experts])


def test_lru_by_hand() -> None:
    wanted = [demand(0, 1, 2), demand(0, 1, 3), demand(0, 2, 3), demand(0, 1, 2)]
    counts = simulate(wanted, 2, policy_for("lru", 2, wanted))
    assert counts.hits == [0, 1, 1, 1] and counts.misses == [2, 1, 1, 1]
    assert counts.evictions == 3 and counts.rate() == 3 / 8
    assert counts.rate([True, True, False, False]) == 1 / 4


def test_cache_smaller_than_a_request_goes_through_it_in_turns() -> None:
    wanted = [demand(0, *range(6)), demand(1, *range(6))]
    for name in ("lru", "lfu", "slru", "s3fifo", "belady"):
        counts = simulate(wanted, 2, policy_for(name, 2, wanted))
        assert counts.misses == [6, 6] and counts.evictions == 10


def test_reuse_distance_is_the_number_of_others_in_between() -> None:
    wanted = [demand(0, 1, 2), demand(1, 1), demand(0, 1), demand(0, 1)]
    # (0,1) after (0,2) and (1,1); then after nothing else
    found = {each["label"]: each["share"] for each in reuse_distances(wanted)}
    assert found == {"< 1": 1 / 5, "< 2": 0, "< 4": 1 / 5, "first use": 3 / 5}


def test_reuse_distances_give_the_hit_rate_of_lru(trace: Trace) -> None:
    """Mattson's property, with distances by counting."""
    wanted = [Demand(d.layer, d.tokens, d.experts) for d in demands(trace.rows()) if d.tokens == 1]
    last: OrderedDict[Any, None] = OrderedDict()
    shares: dict[int, int] = {}
    for key in (key for d in wanted for key, _ in d.experts):
        if key in last:
            distance = len(last) - 1 - list(last).index(key)
            shares[distance.bit_length()] = shares.get(distance.bit_length(), 0) + 1
        last[key] = None
        last.move_to_end(key)
    total = sum(len(d.experts) for d in wanted)
    found = reuse_distances(wanted)
    for number, each in enumerate(found[:-1]):
        assert each["share"] == pytest.approx(shares.get(number, 0) / total)
    assert sum(each["share"] for each in found) == pytest.approx(1)


def test_uses_count_every_token(trace: Trace) -> None:
    found = uses(trace)
    assert found.shape == (trace.layers, trace.experts)
    assert found.sum() == len(trace.columns["experts"])
    row = next(trace.rows())
    assert all(found[row.layer, expert] >= 1 for expert in row.experts.ravel().tolist())


def test_report_agrees_with_the_run(trace: Trace) -> None:
    found = report(trace, drive=DRIVE)
    assert found["recorded"]["agrees"] and found["damage"] is None
    assert (found["prompt_tokens"], found["decoded_tokens"]) == (20, 25)
    rows = {(row["policy"], row["slots"]): row for row in found["rows"]}
    for slots in {row["slots"] for row in found["rows"]}:
        best = rows["belady", slots]
        for name in found["policies"]:
            row = rows[name, slots]
            assert row["hits"] <= best["hits"] and row["tokens_per_s"] > 0
            assert row["bytes"] == slots * trace.about["record_bytes"]
    json.dumps(found)
    assert "replayed the same" in text(found) and "tok/s" in text(found)


def test_more_hits_are_forecast_to_be_faster(trace: Trace) -> None:
    found = report(trace, ["belady"], [8, 40, 200], DRIVE)["rows"]
    speeds = [row["tokens_per_s"] for row in found]
    assert speeds == sorted(speeds) and speeds[0] < speeds[-1]
    assert Speed(trace, None).tokens_per_s(None) is None  # type: ignore[arg-type]
    assert "no tokens/s" in text(report(trace, ["lru"], [8]))


def test_report_of_a_damaged_trace_says_where(trace: Trace) -> None:
    damaged = Trace.__new__(Trace)
    damaged.__dict__.update(trace.__dict__, damage="damaged from byte 9 of 10 on (why)")
    assert "damaged from byte 9 of 10 on (why)" in text(report(damaged, ["lru"], [8]))


def test_page_holds_everything_and_needs_nothing(trace: Trace) -> None:
    found = page(report(trace, ["lru", "belady"], [8, 50], DRIVE))
    assert found.startswith("<!doctype html>") and "http" not in found.replace("www.w3", "")
    for words in ("Hit rate", "Forecast", "since the last use", "data:image/png;base64"):
        assert words in found


def test_unknown_policy_and_size_are_refused(trace: Trace) -> None:
    with pytest.raises(UsageError, match=r"no cache policy 'fifo'; choose from .*belady"):
        report(trace, ["fifo"])
    with pytest.raises(UsageError, match="at least 1 expert"):
        report(trace, ["lru"], [0])


# Commands ---------------------------------------------------------------------


def test_run_records_and_replay_reads(demo_store: DemoStore, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, machine = tmp_path / "t.arrow", tmp_path / "m.json"
    machine.write_text(json.dumps(document()))
    asked = headgate(
        "run", demo_store(4, 8), "Which country is Oslo in?", "--trace", file, "--json"
    )
    assert asked.returncode == 0, asked.stderr
    done = headgate(
        "replay", file, "--json", "--machine", machine, "--plot", tmp_path / "r.png",
        "--html", tmp_path / "r.html", "--policies", "lru,belady", "--sizes", "1M,4M",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, run = json.loads(done.stdout), json.loads(asked.stdout)
    assert found["recorded"]["agrees"]
    assert found["recorded"]["hit_rate"] == pytest.approx(run["hit_rate"])
    assert {row["policy"] for row in found["rows"]} == {"lru", "belady"}
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "r.html").stat().st_size > 1000
    # Neither the question nor its tokens.
    words = np.array([ord(c) for c in "Oslo"], np.uint8).tobytes()
    assert words not in file.read_bytes()


def test_bench_records_its_first_process(demo_store: DemoStore, tmp_path: Path) -> None:
    file = tmp_path / "t.arrow"
    done = headgate(
        "bench", demo_store(4, 8), "--prompt-lengths", 4, "--generation-lengths", 3, "--cold",
        "--repeats", 1, "--trace", file, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,), found = json.loads(done.stdout)["runs"], load(file)
    decoded = found.decoding
    hits, misses = (found.columns[name][decoded].sum() for name in ("hits", "misses"))
    assert hits / (hits + misses) == pytest.approx(run["hit_rate"])


def test_plan_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    machine = tmp_path / "m.json"
    machine.write_text(json.dumps(document()))
    done = headgate(
        "plan", "qwen3.5-35b-a3b", "--machine", machine, "--budgets", "6G,16G", "--bits", "4",
        "--plot", tmp_path / "p.png", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 4 and found["model"]["exact"] and found["command"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "qwen9"}, "there is no model"),
        ({"bits": "x"}, "bits 'x' cannot be"),
        ({"bits": "5"}, "expert bits 5"),
        ({"budgets": "0"}, "at least 1"),
        ({"machine": Path("absent.json")}, "cannot read"),
        ({"save_machine": Path("x.json")}, "writes this machine"),
        ({"trace": Path("absent.arrow")}, "cannot read"),
    ],
    ids=str,
)
def test_plan_refuses(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    machine = tmp_path / "m.json"
    machine.write_text(json.dumps(document()))
    nothing = dict.fromkeys(
        ("save_machine", "budgets", "bits", "experts_per_token", "context", "trace", "plot")
    )
    given = {"model": "qwen3.5-35b-a3b", "machine": machine, "prompt": 512, **nothing, **options}
    with pytest.raises(HeadgateError, match=message):
        plan(**given)


def test_plan_takes_hit_rates_from_a_trace_of_the_store(
    demo_store: DemoStore, trace_file: Path, tmp_path: Path
) -> None:
    machine = tmp_path / "m.json"
    machine.write_text(json.dumps(document()))
    done = headgate(
        "plan", demo_store(4, 8), "--machine", machine, "--trace", trace_file,
        "--budgets", "200M", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {
        row["experts_per_token"]: row["hit_rate_from"] for row in json.loads(done.stdout)["rows"]
    }
    assert said[8] == "a trace of this model" and said[4] == "published statistics"
    other = headgate("plan", "qwen3.5-35b-a3b", "--machine", machine, "--trace", trace_file)
    assert other.returncode == 2 and "the trace has" in other.stderr
