"""``headgate run`` as a process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headgate.store import Store
from tests.conftest import DemoStore

TOOLS = [
    {
        "name": "get_weather",
        "description": "Get the weather forecast",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    }
]


def headgate(*args: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headgate", *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL if stdin is None else None,
        input=stdin,
    )


def document(*args: object) -> dict[str, Any]:
    done = headgate("run", *args, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_demo_answers_on_stdout_and_sums_up_on_stderr() -> None:
    done = headgate("run", "Which country is Oslo in?")
    assert (done.returncode, done.stdout) == (0, "Oslo is in Norway.\n")
    assert re.search(
        r"tokens/s, first after [\d.]+ s, hit rate \d+%, .* read per token, "
        r"peak memory .*, lossy: none",
        done.stderr,
    )


def test_prompt_from_stdin(demo_store: DemoStore) -> None:
    done = headgate("run", demo_store(), stdin="Which country is Oslo in?")
    assert done.stdout == "Oslo is in Norway.\n"


def test_json_document(demo_store: DemoStore) -> None:
    found = document(demo_store(4, 8), "Which country is Oslo in?", "--expert-bits", 3)
    assert found["text"] == "Oslo is in Norway." and found["finish_reason"] == "stop"
    assert found["lossy"] == ["expert-bits 3 (stored 4)"]
    assert found["prompt_tokens"] > found["generated_tokens"] > 0
    for figure in ("tokens_per_s", "ttft_s", "hit_rate", "bytes_read_per_token"):
        assert found[figure] > 0
    assert found["peak_memory_bytes"] > 1 << 20 and found["tool_calls"] == []


def test_tools_are_called(demo_store: DemoStore, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    found = document(demo_store(), "Please get the weather forecast in Paris.", "--tools", path)
    (call,) = found["tool_calls"]
    assert call["name"] == "get_weather" and set(call["arguments"]) == {"city"}
    assert "<tool_call>" in found["text"]


def test_raw_prompt_is_not_templated(demo_store: DemoStore) -> None:
    with_template = document(demo_store(), "Hello", "--max-tokens", 1)
    raw = document(demo_store(), "Hello", "--max-tokens", 1, "--raw")
    assert raw["prompt_tokens"] < with_template["prompt_tokens"]
    assert raw["finish_reason"] == "length" and raw["generated_tokens"] == 1


def test_peak_memory_stays_within_three_budgets(large_store: Path) -> None:
    refused = headgate("run", large_store, "hi", "--memory", "1M")
    smallest = int(re.search(r"smallest that works is (\d+)M", refused.stderr)[1])  # type: ignore[index]
    experts = Store.open(large_store).manifest.expert_file_bytes * 3 >> 20
    texts, rates = set(), []
    # The estimate of the process differs by a little from run to run.
    for budget in (smallest + 4, smallest + 40, smallest + experts + 40):
        found = document(
            large_store, "Tell me a story.", "--max-tokens", 40, "--memory", f"{budget}M",
            "--context", 128, "--temperature", 0,
        )  # fmt: skip
        assert found["peak_memory_bytes"] <= budget << 20
        texts.add(found["text"])
        rates.append(found["hit_rate"])
    assert len(texts) == 1
    assert rates[0] < rates[1] < rates[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.headgate", "hi"], "nowhere.headgate does not exist"),
        (["STORE", "hi", "--memory", "8X"], "'8X' is not a size"),
        (["STORE", "hi", "--memory", "10M"], "the smallest that works is"),
        (["STORE", "hi", "--experts-per-token", "999"], "experts per token is 999; the model has"),
        (["STORE", "hi", "--expert-bits", "8"], "can be read at 2, 3, 4 bits"),
        (["STORE", "hi", "--max-tokens", "0"], "max_tokens is 0"),
        (["STORE", "hi", "--top-p", "2"], "top_p 2.0 is not in"),
        (["STORE", "hi", "--tools", "missing.json"], "cannot read tools file missing.json"),
        (["STORE", "hi " * 3000, "--context", "500"], "the context holds 500"),
        (["STORE", "  "], "the prompt is empty"),
        (["STORE"], "the prompt is empty"),
        (["STORE", "hi", "--nonsense"], "No such option"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(
    demo_store: DemoStore, args: list[str], message: str
) -> None:
    done = headgate("run", *[str(demo_store(4, 8)) if a == "STORE" else a for a in args])
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr
    if "No such option" not in message:
        assert len(done.stderr.splitlines()) == 1


def test_version_and_help() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", headgate("--version").stdout)
    for command in ("run", "convert", "inspect", "verify"):
        done = headgate(command, "--help")
        assert done.returncode == 0 and "Usage" in done.stdout


def test_reader_that_goes_away_is_no_error(demo_store: DemoStore) -> None:
    command = f"{sys.executable} -m headgate run {demo_store()} 'Tell me a short story.' | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
