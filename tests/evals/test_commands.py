"""``headgate eval`` and ``headgate sweep`` as commands."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headgate.cli.main import main
from headgate.cli.sweep import stored_bits
from tests.conftest import DemoStore
from tests.evals.servers import completion, server


@dataclass(frozen=True)
class Done:
    """What a command has left."""

    returncode: int
    stdout: str
    stderr: str


class Headgate:
    """The program in this process: starting one for each case would take minutes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]):
        self._monkeypatch, self._captured = monkeypatch, captured

    def __call__(self, *args: object) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["headgate", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            main()
        found = self._captured.readouterr()
        return Done(int(end.value.code or 0), found.out, found.err)

    def refuses(self, *args: object) -> str:
        """The message with which a command ends that cannot be."""
        done = self(*args)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.splitlines()[-1].startswith("headgate: error: ")
        return done.stderr


@pytest.fixture
def headgate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Headgate:
    return Headgate(monkeypatch, capsys)


def test_eval_of_a_store_with_lossy_settings(
    headgate: Headgate, demo_store: DemoStore, tmp_path: Path
) -> None:
    prompts = tmp_path / "mine.jsonl"
    item = {"messages": [{"role": "user", "content": "Which country is Oslo in?"}]}
    lines = [{**item, "id": "a", "kind": "cities", "mentions": ["Norway"]},
             {**item, "id": "b", "kind": "cities", "mentions": ["Sweden"]}]  # fmt: skip
    prompts.write_text("\n".join(map(json.dumps, lines)))
    done = headgate("eval", demo_store(4), "--suite", "recall", "--file", prompts,
                    "--expert-bits", 3, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["target"]["lossy"] == ["expert-bits 3 (stored 4)"]
    found = document["suites"]["recall"]["free"]
    assert (found["all"]["n"], found["all"]["score"]) == (2, 0.5)
    assert found["kinds"]["cities"]["failures"] == {"wrong value": 1}
    assert found["examples"][0]["said"] == "Oslo is in Norway."
    assert document["expert_bytes_per_token"] > 0


def test_eval_prints_tables(headgate: Headgate, demo_store: DemoStore) -> None:
    done = headgate("eval", demo_store(4), "--suite", "divergence", "--limit", 1,
                    "--experts-per-token", 4)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lossy: experts-per-token 4 (trained 8)" in done.stdout
    assert re.search(r"^ +all +\d+ +[\d.e-]+ .* \d+\.\d\d%", done.stdout, re.MULTILINE)


def test_eval_of_a_server_counts_what_it_answers(headgate: Headgate) -> None:
    with server(lambda body: (200, completion("I cannot."))) as (url, bodies):
        done = headgate("eval", url, "--suite", "schema", "--limit", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["suites"]["schema"]
    assert set(found) == {"free", "constrained"}
    assert found["free"]["all"]["failures"] == {"refusal": found["free"]["all"]["n"]}
    formats = [body.get("response_format", {}).get("type") for body in bodies]
    assert formats.count("json_schema") == len(formats) // 2


def test_eval_of_a_server_that_refuses_everything_fails(headgate: Headgate) -> None:
    with server(lambda body: (401, "who are you")) as (url, _):
        message = headgate.refuses("eval", url, "--suite", "recall", "--limit", 1)
    assert "no question was answered" in message
    assert "401: who are you" in message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--suite", "chess"], "there is no suite 'chess'"),
        (["--mode", "loose"], "mode is 'loose'"),
        (["--limit", "0"], "limit is 0"),
        (["--file", "x.jsonl"], "is for one suite"),
        (["--suite", "tools", "--file", "none.jsonl"], "cannot read suite none.jsonl"),
        (["none.headgate"], "none.headgate does not exist"),
        (["--suite", "divergence", "--text", "none.txt"], "cannot read none.txt"),
        (["http://127.0.0.1:9/v1", "--memory", "1G"], "a server has its own"),
        (["http://127.0.0.1:9/v1", "--suite", "divergence"], "does not give"),
    ],
)
def test_eval_refuses_bad_input(headgate: Headgate, arguments: list[str], complaint: str) -> None:
    assert complaint in headgate.refuses("eval", *arguments)


def test_eval_names_the_broken_line(headgate: Headgate, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "a"}\n')
    message = headgate.refuses("eval", "--suite", "tools", "--file", path)
    assert f"suite {path}, line 1: no kind" in message


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--expert-bits", "8"], "has no 8-bit experts"),
        (["--experts-per-token", "9"], "trained with 8"),
        (["--experts-per-token", "0"], "at least 1"),
        (["--experts-per-token", "all"], "give numbers"),
        (["--suites", "chess"], "there is no suite"),
        (["--dense-bits", "8"], "a store is given"),
        (["--jobs", "0"], "at least 1"),
    ],
)
def test_sweep_refuses_bad_input_before_it_begins(
    headgate: Headgate,
    demo_store: DemoStore,
    tmp_path: Path,
    arguments: list[str],
    complaint: str,
) -> None:
    message = headgate.refuses("sweep", demo_store(4), "--out", tmp_path / "o", *arguments)
    assert complaint in message
    assert not (tmp_path / "o" / "points").exists()


def test_sweep_of_a_checkpoint_converts_what_it_needs(headgate: Headgate, tmp_path: Path) -> None:
    settings = "--expert-bits 3 --experts-per-token 2 --dense-bits 8 --suites divergence --limit 1"
    done = headgate("sweep", *settings.split(), "--out", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    point: dict[str, Any] = json.loads(done.stdout)[0]
    assert point["knobs"] == {
        "expert_bits": 3,
        "experts_per_token": 2,
        "dense_bits": 8,
        "group_size": 64,
    }
    assert {p.name for p in (tmp_path / "stores").iterdir()} == {
        "e16-d16.headgate",
        "e4-d8-g64.headgate",
    }
    kept = tmp_path / "stores" / "e4-d8-g64.headgate" / "quality.json"
    assert json.loads(kept.read_text())["points"][0]["knobs"]["expert_bits"] == 3


def test_low_bits_are_read_from_the_store_that_people_have() -> None:
    assert [stored_bits(bits) for bits in (2, 3, 4, 8, 16, "2:4", "4:8")] == [
        4, 4, 4, 8, 16, 4, 8,
    ]  # fmt: skip
