"""Sweeps: the grid, and what is not measured again."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headgate.engine import Engine
from headgate.errors import StoreError, UsageError
from headgate.evals.point import Job, Plan, expert_bytes_per_token
from headgate.evals.sweep import Knobs, Point, Sweep, grid, parse_bits
from headgate.evals.worker import run_job
from tests.conftest import DemoStore

PLAN = Plan(("divergence",), 1)


def test_grid_has_every_combination_once() -> None:
    found = grid([16, 4], [8, 1], [16, 8], [32, 64])
    assert len(found) == len(set(found)) == 12  # 16 bits have no groups
    assert grid([4, 2], [8], one_at_a_time=True) == [Knobs(4, 8), Knobs(2, 8)]
    lines = grid([4, 2], [8, 4, 1], one_at_a_time=True)
    assert lines == [Knobs(4, 8), Knobs(4, 4), Knobs(4, 1), Knobs(2, 8)]
    with pytest.raises(UsageError):
        grid([], [8])


def test_bits_may_be_modes_that_the_engine_knows() -> None:
    assert parse_bits("16,4, 2:4,2:4@0+-1") == [16, 4, "2:4", "2:4@0+-1"]
    assert Knobs("2:4@0+-1").key == "b2_4_0_-1"
    assert Knobs("2:4", 8).engine_options() == {"expert_bits": "2:4", "experts_per_token": 8}
    assert Knobs("2:4", 8).key == "b2_4-k8"
    for words in ("", "four", "4,,2", "4;2"):
        with pytest.raises(UsageError, match="expected a number such as 4"):
            parse_bits(words)


def test_job_travels_as_json() -> None:
    job = Job("s", {"expert_bits": 2}, {"threads": 1}, replace(PLAN, text="x"), "r", 2)
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job


def test_bytes_per_token_count_every_routed_expert(demo_store: DemoStore) -> None:
    full = Engine.load(demo_store(4), threads=1)
    less = Engine.load(demo_store(4), threads=1, experts_per_token=2, expert_bits=2)
    layout = full.store.layout
    assert expert_bytes_per_token(full) == 8 * 8 * layout.prefix_bytes(4)
    assert expert_bytes_per_token(less) == 8 * 2 * layout.prefix_bytes(2)


def test_finished_points_are_not_measured_again(demo_store: DemoStore, tmp_path: Path) -> None:
    store = demo_store(4)
    points = [Point(Knobs(bits, 8), store) for bits in (4, 2)]
    notes: list[str] = []
    first = Sweep(tmp_path, points[:1], store, PLAN, threads=1)
    first.run(note=notes.append)
    before = first.file(points[0].knobs).stat()
    both = Sweep(tmp_path, points, store, PLAN, threads=1)
    both.run(jobs=2, note=notes.append)
    assert "1 of 2 points are finished" in notes
    after = both.file(points[0].knobs).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    full, coarse = both.results()
    assert full["divergence"]["all"]["max_kl"] == 0 < coarse["divergence"]["all"]["mean_kl"]
    assert coarse["lossy"] == ["expert-bits 2 (stored 4)"]
    assert full["expert_bytes_per_token"] > coarse["expert_bytes_per_token"]
    assert not (tmp_path / "reference.f32").exists()  # large, and no longer needed
    with pytest.raises(UsageError, match="another plan"):
        Sweep(tmp_path, points, store, replace(PLAN, limit=2)).run()
    with pytest.raises(UsageError, match="another reference"):
        Sweep(tmp_path, points, demo_store(8), PLAN).run()


def test_point_of_another_store_is_measured_again(demo_store: DemoStore, tmp_path: Path) -> None:
    point = Point(Knobs(4), demo_store(4))
    sweep = Sweep(tmp_path, [point], demo_store(4), PLAN)
    sweep.file(point.knobs).parent.mkdir()
    sweep.file(point.knobs).write_text(json.dumps({"store_id": "another"}))
    assert sweep.result(point) is None
    sweep.file(point.knobs).write_text('{"store_id": ')
    assert sweep.results() == []


def test_killed_sweep_repeats_no_finished_point(demo_store: DemoStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headgate", "sweep", str(demo_store(4)), "--expert-bits",
               "4,3,2", "--experts-per-token", "8", "--suites", "divergence", "--limit", "1",
               "--threads", "1", "--out", str(tmp_path)]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("b4-k8: "):
                process.send_signal(signal.SIGKILL)
                break
    first = tmp_path / "points" / "b4-k8.json"
    before = first.stat()
    assert not (tmp_path / "points" / "b2-k8.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert first.stat().st_mtime_ns == before.st_mtime_ns
    assert "b4-k8: " not in done.stderr
    assert len(list((tmp_path / "points").glob("*.json"))) == 3
    assert "| 3 bits, K 8 |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_error_of_a_points_process_is_raised_here(demo_store: DemoStore, tmp_path: Path) -> None:
    job = Job(str(demo_store(4)), {}, {"expert_bits": 8}, PLAN)
    with pytest.raises(StoreError, match="the store has no 8-bit experts"):
        run_job(job, tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_not_installed_is_said(
    demo_store: DemoStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_ray(name: str, *args: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    plan = Plan(("schema",), 1, ("free",))
    sweep = Sweep(tmp_path, [Point(Knobs(4), demo_store(4))], demo_store(4), plan)
    with pytest.raises(UsageError, match="pip install ray"):
        sweep.run(ray="auto")


def test_worker_ends_when_its_sweep_is_gone() -> None:
    code = (
        "import os, sys, time\n"
        "from headgate.evals import worker\n"
        "if os.fork():\n"
        "    os._exit(0)\n"
        "parent = os.getppid() + 1000000\n"  # nobody's
        "worker._die_with(parent)\n"
        "print('still here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONWARNINGS": "ignore"})  # fmt: skip
    assert done.stdout == ""


def test_every_layer_in_turn_is_a_point_of_its_own(demo_store: DemoStore, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "headgate", "sweep", str(demo_store(4)), "--expert-bits",
               "2,2:4@each", "--experts-per-token", "8", "--suites", "divergence", "--limit", "1",
               "--out", str(tmp_path), "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    points = {x["knobs"]["expert_bits"]: x for x in json.loads(done.stdout)}
    assert set(points) == {2, *(f"2:4@{layer}" for layer in range(8))}
    kl = {bits: x["divergence"]["all"]["mean_kl"] for bits, x in points.items()}
    assert min(kl, key=lambda bits: kl[bits]) != 2
