"""``headgate lab`` as a command, and real processes on the demo store."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from headgate.errors import HeadgateError, ResourceError
from headgate.lab import process, quality_worker
from headgate.lab.experiment import Protocol, Subject
from headgate.lab.lab import Lab
from headgate.lab.ledger import Ledger
from headgate.lab.process import Processes
from headgate.paths import cache_folder
from headgate.store import Store
from headgate.stream.profile import Profile, profile_file, save_profile
from tests.conftest import DemoStore
from tests.evals.test_commands import Headgate
from tests.lab.machines import A, Killed, Machine, proposal

SHORT = Protocol(prompt_tokens=4, generated_tokens=4, warm=False, pairs=5)


@pytest.fixture
def headgate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Headgate:
    return Headgate(monkeypatch, capsys)


@pytest.fixture
def store(demo_store: DemoStore) -> Store:
    return Store.open(demo_store(4))


# -- processes


def test_sample_has_tokens_speeds_and_what_the_stream_did(store: Store) -> None:
    sample = Processes(store).measure(Subject({"depth": 4}), Protocol(
        metric="prompt", prompt_tokens=6, generated_tokens=3), 5)  # fmt: skip
    assert [len(chosen) for chosen in sample.tokens][::2] == [3, 3]
    speed = sample.raw["speed"]
    assert sample.value == speed["prompt"] == 6 / sample.raw["prompt_s"]
    assert speed["decode"] == pytest.approx(2 / sample.raw["decode_s"])
    assert sample.raw["stream"]["layers"] == 3 * len(store.manifest.layers)
    assert sample.raw["budget_bytes"] > 0 and len(sample.raw["token_s"]) == 2


def test_exact_knobs_give_the_same_tokens_and_lossy_ones_other_tokens(store: Store) -> None:
    processes = Processes(store)
    same = [processes.measure(s, SHORT, 3).tokens for s in (A, Subject({"threads": 1, "depth": 2}))]
    assert same[0] == same[1]
    assert processes.measure(A, SHORT, 4).tokens != same[0]


def test_failing_process_raises_what_it_raised(store: Store) -> None:
    processes = Processes(store)
    with pytest.raises(HeadgateError, match="has no 8-bit experts"):
        processes.measure(Subject({"expert_bits": 8}), SHORT, 0)
    with pytest.raises(HeadgateError, match="no cache policy"):
        processes.measure(Subject({"policy": "best"}), SHORT, 0)


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        ("raise SystemExit('oh no')", "status 1: oh no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
        ("import time; time.sleep(60)", "took longer than 1 s"),
        ("print('{\"at\": \"result\"}')", "did not report"),
        ("print('what?'); print('[]'); print('{\"at\": \"error\", \"kind\": \"X\", "
         "\"message\": \"m\"}')", "^m$"),
        ("import json; [print(json.dumps({'at': w})) for w in ('prompt', 'decode', 'end')]; "
         "print(json.dumps({'at': 'result', 'tokens': [[1]]}))", "did not generate all"),
    ],
)  # fmt: skip
def test_process_that_misbehaves_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, complaint: str
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(program)
    monkeypatch.setattr(process, "WORKER", worker)
    with pytest.raises(ResourceError, match=complaint):
        Processes(store).measure(A, Protocol(timeout_s=1.0), 0)


def test_quality_of_a_lossy_setting_is_asked_of_the_suites(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality_worker, "some", lambda items, limit: items[:limit])
    found = quality_worker.answers(
        {"store": str(store.path), "memory": None, "engine": {"expert_bits": 3}, "stream": {},
         "suites": "recall,schema", "limit": 1}
    )  # fmt: skip
    assert list(found) == ["recall free", "schema free", "schema constrained"]
    assert list(found["recall free"].values()) == [True]


# -- commands


def test_experiment_by_command_on_the_demo(
    headgate: Headgate, store: Store, tmp_path: Path
) -> None:
    ledger = tmp_path / "l"
    done = headgate("lab", "run", "--hypothesis", "Slow reads are slow", "--store", store.path,
                    "--set", "throttle=4000000", "--prompt-length", 4, "--generation-length", 4,
                    "--cold", "--ledger", ledger)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "experiment 1: discarded" in done.stdout and "ended early" in done.stdout
    assert "1 discarded" in headgate("lab", "list", "--ledger", ledger).stdout
    shown = headgate("lab", "show", 1, "--ledger", ledger).stdout
    assert "candidate   throttle=4000000.0" in shown and "Slow reads are slow" in shown
    rows = headgate("lab", "export", "--ledger", ledger, "--measurements").stdout.splitlines()
    assert len(rows) == 1 + 6
    out = headgate("lab", "report", "--ledger", ledger, "--html", tmp_path / "r.html", "--plot",
                   tmp_path / "r.svg")  # fmt: skip
    assert out.returncode == 0
    assert (tmp_path / "r.svg").read_text().strip() in (tmp_path / "r.html").read_text()
    assert headgate("lab", "resume", "--ledger", ledger).stdout == ""
    assert "has its verdict" in headgate.refuses("lab", "resume", 1, "--ledger", ledger)


def interrupted(path: Path, store: Store, **changes: str) -> None:
    """A ledger with an experiment that was killed."""
    ledger = Ledger(path)
    lab = Lab(ledger, store, measure=Machine(0, kill_at=1).measure)
    lab.machine_about.update(changes)
    with pytest.raises(Killed):
        lab.runner.start(lab.propose("run", "h", A, Subject({"depth": 4}), SHORT))
    ledger.close()


def test_interrupted_experiment_is_void_if_the_program_has_changed(
    headgate: Headgate, store: Store, tmp_path: Path
) -> None:
    interrupted(tmp_path / "l", store, program="another")
    done = headgate("lab", "resume", "--ledger", tmp_path / "l")
    assert done.stdout == "experiment 1: void: interrupted, and headgate has changed\n"


def test_interrupted_experiment_is_void_if_its_store_is_gone(
    headgate: Headgate, store: Store, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "l")
    ledger.begin(proposal())
    ledger.close()
    done = headgate("lab", "resume", 1, "--ledger", tmp_path / "l")
    assert "experiment 1: void: interrupted, and its store is gone" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "--hypothesis", "h"], "there is no change"),
        (["run", "--hypothesis", "h", "--set", "deep=1"], "sets no knob"),
        (["run", "--hypothesis", "h", "--set", "depth=4", "--pairs", "2"], "pairs is 2"),
        (["run", "--hypothesis", "h", "--set", "depth=4", "--baseline", "depth=4"], "the same"),
        (["run", "--hypothesis", "h", "--set", "depth=4", "--metric", "fun"], "metric is 'fun'"),
        (["run", "--hypothesis", "h", "--ref", "a", "--patch", "b"], "exclude each other"),
        (["run", "--hypothesis", "h", "--ref", "a", "--repo", "/"], "in no git repository"),
        (["list"], "there is no ledger"),
        (["show", "1"], "there is no ledger"),
        (["resume"], "there is no ledger"),
        (["search", "--knobs", "expert_bits"], "is not searched over"),
        (["search", "--trials", "0"], "trials is 0"),
        (["search", "--baseline", "expert_bits=2"], "cannot hold expert_bits"),
        (["search", "--baseline", "throttle=1e6"], "cannot hold throttle"),
        (["agent", "--command", "true", "--repo", "/"], "in no git repository"),
        (["report", "--plot", "chart.png"], "named .svg, not chart.png"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    headgate: Headgate, store: Store, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    if arguments[0] in ("run", "search", "agent"):
        arguments = [*arguments, "--store", str(store.path)]
    assert complaint in headgate.refuses("lab", *arguments, "--ledger", tmp_path / "l")
    assert complaint != "there is no ledger" or not (tmp_path / "l").exists()


# -- what follows a profile


def test_run_and_chat_follow_the_profile_and_say_so(
    headgate: Headgate, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, machine = profile_file(store, cache_folder()).stem.split("-")
    found = Profile(key, machine, {"threads": 1, "depth": 4}, 1, "decode", 1.25, 1.1, 7, "/l")
    path = save_profile(found, store, cache_folder())
    try:
        question = ("run", store.path, "Which country is Oslo in?")
        with_it = headgate(*question, "--json")
        # The program of this test takes its answer from stdout and has not left.
        assert json.loads(with_it.stdout)["profile"]["knobs"] == {"threads": 1, "depth": 4}
        done = headgate(*question)
        assert "profile: experiment 7, decode x 1.25 (threads 1, depth 4)" in done.stderr
        without = headgate(*question, "--no-profile")
        assert "profile" not in without.stderr and without.stdout == done.stdout
        monkeypatch.setattr("sys.stdin", io.StringIO("Which country is Oslo in?\n"))
        chat = headgate("chat", store.path)
        assert "profile: experiment 7, decode x 1.25 (threads 1, depth 4)" in chat.stderr
        assert chat.stdout == done.stdout
        path.write_text("{")
        assert "--no-profile" in headgate.refuses(*question)
    finally:
        path.unlink()
