"""Suite files: the package's own, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headgate.errors import UsageError
from headgate.evals.suites import SUITES
from headgate.evals.suites.items import load_items, some, suite_file

GOOD: dict[str, Any] = {
    "id": "a",
    "kind": "k",
    "messages": [{"role": "user", "content": "Hi"}],
    "calls": [],
    "schema": {"type": "integer"},
    "value": 1,
    "mentions": ["x"],
}


@pytest.mark.parametrize("name", SUITES)
def test_every_prompt_of_the_package_is_good(name: str) -> None:
    items = load_items(suite_file(name), SUITES[name].check)
    assert len(items) > 100
    assert len(some(items, 1)) == len({item.kind for item in items})


def test_tools_cover_what_they_promise() -> None:
    kinds = {item.kind for item in load_items(suite_file("tools"))}
    assert kinds >= {"single", "choose among many", "look-alikes", "parallel", "irrelevant"}
    assert kinds >= {f"schema depth {depth}" for depth in range(1, 6)}
    signs = ("quotes", "backslashes", "newlines", "braces", "scripts", "numbers as strings")
    assert kinds >= {f"hostile, {sign}" for sign in signs}
    assert kinds >= {"after a result", "result to report", "error to report", "thinking"}


def test_depth_of_a_schema_is_that_of_its_kind() -> None:
    def depth(value: object) -> int:
        return 1 + max(map(depth, value.values())) if isinstance(value, dict) else 1

    for item in load_items(suite_file("tools")):
        if item.kind.startswith("schema depth"):
            found = max(map(depth, item.data["calls"][0]["arguments"].values()))
            assert found == int(item.kind[-1])


def test_recall_puts_the_fact_where_the_kind_says() -> None:
    for item in load_items(suite_file("recall")):
        text, place = item.messages[0]["content"], item.data["mentions"][0]
        assert text.count(place) == 1  # or a wrong answer could pass
        share = text.index(place) / len(text)
        assert share == pytest.approx(int(item.kind.split()[2].rstrip("%")) / 100, abs=0.12)


def write(folder: Path, *lines: str) -> Path:
    path = folder / "suite.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**GOOD, "id": 3}), "no id"),
        (json.dumps({**GOOD, "id": "b", "messages": []}), "no messages"),
        (json.dumps({**GOOD, "id": "b", "messages": [{"content": "x"}]}), "without one of the"),
        (json.dumps(GOOD), "'a' occurs before"),
        (json.dumps({**GOOD, "id": "b", "calls": None}), "no calls"),
        (json.dumps({**GOOD, "id": "b", "calls": [{"name": "f"}]}), "arguments of f"),
        (json.dumps({**GOOD, "id": "b", "tools": [{"name": "f"}]}), "no usable 'function'"),
    ],
)
def test_broken_line_is_reported_by_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path, json.dumps(GOOD), "", line)
    with pytest.raises(UsageError, match=f"suite.jsonl, line 3: .*{complaint}"):
        load_items(path, SUITES["tools"].check)


@pytest.mark.parametrize(
    ("suite", "change", "complaint"),
    [
        ("schema", {"schema": None}, "no schema"),
        ("schema", {"value": "1"}, "does not follow"),
        ("recall", {"mentions": []}, "no mentions"),
        ("recall", {"mentions": [1]}, "not strings"),
    ],
)
def test_suites_check_what_they_need(
    tmp_path: Path, suite: str, change: dict[str, Any], complaint: str
) -> None:
    path = write(tmp_path, json.dumps({**GOOD, **change}))
    with pytest.raises(UsageError, match=f"line 1: .*{complaint}"):
        load_items(path, SUITES[suite].check)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read suite"):
        load_items(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="holds no prompts"):
        load_items(write(tmp_path, "", ""))
