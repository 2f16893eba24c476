"""The benchmark as a whole: what it counts, what it runs, what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import pytest

from headgate.engine import Engine
from headgate.errors import BudgetTooSmall, ResourceError
from headgate.measure.ablate import MECHANISMS, ablate
from headgate.measure.bandwidth import drive_bandwidth
from headgate.measure.bench import Matrix, bench
from headgate.measure.bench_job import Job, JobResult, Phase
from headgate.measure.bench_worker import run
from headgate.measure.html import page
from headgate.measure.launch import Launcher, Measured, launch
from headgate.measure.limit import memory_limit
from headgate.measure.report import text
from headgate.measure.roofline import Bandwidth
from headgate.measure.routes import save_trace, trace_for
from headgate.measure.sources import DenseLayer
from headgate.measure.synth import SynthOptions, synth
from headgate.measure.timed_ops import timed
from headgate.ops import Ops
from headgate.store import Store
from headgate.stream import StreamOptions
from tests.checkpoints import tiny_config

LAYERS, EXPERTS, K = 3, 16, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    config = tiny_config(
        hidden_size=256,
        moe_intermediate_size=128,
        num_experts=EXPERTS,
        num_experts_per_tok=K,
        vocab_size=512,
        max_position_embeddings=256,
    )
    # < and & in the name, for whoever writes it into HTML
    out = tmp_path_factory.mktemp("bench") / "a<b&c.headgate"
    return Store.open(synth(out, config, SynthOptions()).out)


def job(store: Store, *phases: Phase, **changes: Any) -> Job:
    return Job(str(store.path), phases or (Phase("cold", 6, 5), Phase("warm", 3, 4)), **changes)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs in this process, and bandwidths of 1 GB/s and 10 GB/s."""
    monkeypatch.setattr("headgate.measure.launch.launch", lambda job, prefix: run(job))
    monkeypatch.setattr(Launcher, "_bandwidth", lambda self, job: Bandwidth(1e9, 10e9))


def test_a_job_counts_what_it_does(store: Store) -> None:
    result = run(job(store, stream=StreamOptions(lookahead=0)))
    assert JobResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    cold, warm = result.phases
    record = store.layout.stride
    used = cold.prompt.stream["hits"] + cold.prompt.stream["misses"]
    # A new process has none of the experts, and reads each that it needs once.
    assert cold.prompt.stream["hits"] == 0 and used == cold.prompt.needed
    assert cold.prompt.stream["bytes_read"] == cold.prompt.needed * record
    assert sum(map(len, cold.prompt.record_us.values())) == cold.prompt.needed
    assert sum(cold.prompt.latency_counts) == cold.prompt.chunk_reads
    assert len(cold.token_s) == 4 and len(warm.token_s) == 3
    for phase in result.phases:
        steps = len(phase.token_s)
        assert phase.decode.stream["layers"] == steps * LAYERS
        assert phase.decode.stream["hits"] + phase.decode.stream["misses"] == steps * LAYERS * K
        assert phase.token_bytes["drive"] == phase.decode.stream["bytes_read"] / steps
        assert phase.token_bytes["experts"] == LAYERS * K * record
        assert sum(phase.decode.parts.values()) == pytest.approx(sum(phase.token_s))
    assert result.ready_s > result.dense_s > 0


def test_bytes_read_are_those_of_the_kernel(store: Store) -> None:
    result = run(job(store, stream=StreamOptions(cache=False)))
    if not result.direct:
        pytest.skip("the file system of temporary files allows no direct reads")
    for phase in result.phases:
        for counts in (phase.prompt, phase.decode):
            if counts.kernel_read_bytes is None:
                pytest.skip("this system has no /proc/self/io")
            assert counts.stream["bytes_read"] > 0
            assert counts.kernel_read_bytes == pytest.approx(counts.stream["bytes_read"], rel=0.01)


def test_a_trace_decides_what_is_read(store: Store, tmp_path: Path) -> None:
    trace = trace_for(store.manifest.config, 32)
    save_trace(tmp_path / "trace.npz", trace, EXPERTS)
    phase = run(job(store, Phase("cold", 6, 3), trace=str(tmp_path / "trace.npz"))).phases[0]
    first = trace[:6].transpose(1, 0, 2).reshape(LAYERS, -1)
    assert phase.prompt.needed == sum(len(np.unique(layer)) for layer in first)


def test_a_dense_layer_changes_the_bytes_and_not_the_answer(store: Store) -> None:
    plain, dense = (Engine(store) for _ in range(2))
    dense.experts = DenseLayer(dense.experts, 1, EXPERTS)  # type: ignore[assignment]
    for token in (3, 1, 4):
        found = [engine.new_session().append([token]) for engine in (plain, dense)]
        assert np.array_equal(found[0], found[1])
    used = [engine.experts.stats.hits + engine.experts.stats.misses for engine in (plain, dense)]
    assert used[1] - used[0] == 3 * (EXPERTS - K)


def test_timed_operations_give_the_same_bits(store: Store) -> None:
    clocks: list[Any] = []

    def instrument(ops: Ops) -> Ops:
        wrapped, found = timed(ops)
        clocks.append(found)
        return wrapped

    found = [
        Engine(store, instrument=i).new_session().append([1, 2, 3]) for i in (None, instrument)
    ]
    assert np.array_equal(found[0], found[1])
    assert all(s > 0 for part, s in clocks[0].seconds.items() if part != "other operations")


def test_exact_products_belong_to_what_follows_them() -> None:
    class Operations:
        def linear(self, x: Any, *matrices: Any, exact: bool = False) -> Any: ...
        def route(self) -> Any: ...
        def delta_net(self) -> Any: ...

    ops, clocks = timed(cast(Ops, Operations()))
    ops.linear(0, exact=True)
    assert not any(clocks.seconds.values())
    clocks._pending = 1.0
    ops.route()  # type: ignore[call-arg]
    assert 1 <= clocks.seconds["router"] < 1.1 and clocks.seconds["attention"] == 0
    clocks._pending = 2.0
    ops.delta_net()  # type: ignore[call-arg]
    assert 2 <= clocks.seconds["attention"] < 2.1


def test_every_cell_is_measured_and_reported(store: Store, fast: None) -> None:
    matrix = Matrix((2, 5), (3,), (None,), ("cold", "warm"), 2)
    document = bench(store, job(store), matrix, ["headgate", "bench"]).to_dict()
    cells = [(r["prompt_tokens"], r["temperature"], r["repeats"]) for r in document["runs"]]
    assert cells == [(2, "cold", 2), (2, "warm", 2), (5, "cold", 2), (5, "warm", 2)]
    for found in document["runs"]:
        low, high = found["decode_tokens_per_s_range"]
        assert low <= found["decode_tokens_per_s"] <= high
        line = found["roofline"]
        assert line["drive_s"] == pytest.approx(line["drive_bytes"] / 1e9)
        need = line["dense_bytes"] + line["experts_bytes"] + line["state_bytes"]
        assert line["memory_s"] == pytest.approx(need / 10e9)
    assert json.loads(json.dumps(document)) == document
    assert "of roofline" in text(document)


def test_the_html_report_is_well_formed_and_draws(store: Store, fast: None) -> None:
    document = bench(store, job(store), Matrix((2,), (3,), repeats=1)).to_dict()
    worth = {"median": 1.5, "low": 1.25, "high": 2.0}
    document["ablations"] = [
        {"mechanism": "a & b", "decode_worth": worth, "prefill_worth": worth, "rounds": 3}
    ]
    content = page(document).removeprefix("<!doctype html>").replace('<meta charset="utf-8">', "")
    tree = ElementTree.fromstring(content)
    assert len(tree.findall(".//svg")) == 6
    assert len(tree.findall(".//polyline")) == 2  # cold and warm
    assert "src=" not in content and "http" not in content
    assert "1.50  1.25..2.00" in text(document)


class Pretence:
    """Runs nothing; a job's speeds are those that were given for its seed."""

    def __init__(self, speed: Callable[[Job], tuple[float, float]], result: JobResult) -> None:
        self._speed, self._result, self.seen = speed, result, list[Job]()

    def run(self, job: Job) -> Measured:
        self.seen.append(job)
        decode, prefill = self._speed(job)
        phases = [
            replace(phase, token_s=[1 / decode], ttft_s=phase.phase.prompt_tokens / prefill)
            for phase in self._result.phases
        ]
        return Measured(job, replace(self._result, phases=phases), Bandwidth(1, 1), False)


def test_worth_is_the_speed_with_over_the_speed_without(store: Store) -> None:
    def speed(job: Job) -> tuple[float, float]:
        # Everything is twice as fast in the second round; overlap is worth 4 of decoding,
        # large chunks 5 of the prompt, the rest nothing.
        pace = 10.0 * job.seed
        return (pace / (1 if job.stream.overlap else 4), pace / (5 if job.prompt_chunk else 1))

    launcher = Pretence(speed, run(job(store)))
    ablations, baselines = ablate(cast(Launcher, launcher), job(store), 2, lambda _: None)
    assert len(baselines) == 2 and len(launcher.seen) == 2 * (1 + len(MECHANISMS))
    assert len({str(job) for job in launcher.seen}) == len(launcher.seen)  # no two are the same
    for ablation in ablations:
        decode, prefill = ablation.decode, ablation.prefill
        assert decode == [4 if "overlap" in ablation.mechanism.name else 1] * 2
        assert prefill == pytest.approx([5 if "prompts" in ablation.mechanism.name else 1] * 2)


def test_every_mechanism_can_be_turned_off(store: Store) -> None:
    for mechanism in MECHANISMS:
        changed = mechanism.change(job(store, Phase("cold", 3, 3)))
        assert len(run(changed).phases[0].token_s) == 2, mechanism.name


def test_a_throttle_is_what_the_drive_gives(store: Store) -> None:
    # Chunks of a page, so that no read is longer than the time between two of them.
    options = StreamOptions(throttle=20e6, chunk_bytes=4096)
    assert drive_bandwidth(store, 4, options, 0.4) == pytest.approx(20e6, rel=0.2)


def test_errors_of_a_process_are_those_of_its_engine(store: Store) -> None:
    with pytest.raises(ResourceError, match="smallest that works is") as raised:
        launch(job(store, memory=1 << 20), [])
    assert not isinstance(raised.value, BudgetTooSmall)  # which knows more than a message


def test_a_kernel_limit_is_one() -> None:
    with memory_limit(64 << 20) as prefix:
        if not prefix:
            pytest.skip("no memory control group can be made here")
        code = "x = bytearray(200 << 20)"
        done = subprocess.run([*prefix, sys.executable, "-c", code], capture_output=True)
        assert done.returncode == -9
    with memory_limit(None) as prefix:
        assert prefix == []


def command(*args: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "headgate", "bench", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_the_last_line_is_one_document(store: Store, tmp_path: Path) -> None:
    small = ["--prompt-lengths", "4", "--generation-lengths", "3", "--repeats", "1", "--cold"]
    done = command(store.path, *small, "--html", tmp_path / "report.html", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout.splitlines()[-1])["runs"]
    for name in (
        "prompt_tokens",
        "generated_tokens",
        "budget_bytes",
        "decode_tokens_per_s",
        "prefill_tokens_per_s",
        "ttft_s",
        "roofline_ratio",
        "hit_rate",
        "bytes_read_per_token",
        "peak_memory_bytes",
    ):
        assert found[name] >= 0
    assert list(found["read_latency_us"]) == ["p50", "p90", "p99", "max"]
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--generation-lengths", "1"],
        ["--prompt-lengths", "8,x"],
        ["--budgets", "much"],
        ["--repeats", "0"],
        ["--expert-bits", "8"],
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(store: Store, words: list[str]) -> None:
    done = command(store.path, *words)
    assert done.returncode == 2 and done.stderr.startswith("headgate: error: ")
    assert len(done.stderr.splitlines()) == 1
