"""headgate as a model of lm-evaluation-harness, on a task that lies here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.evals.suites.tasks import Scorer, _generation, _manager, run_tasks
from tests.conftest import DemoStore


@pytest.fixture(scope="module")
def scorer(demo_store: DemoStore) -> Scorer:
    return Scorer(Engine.load(demo_store(), threads=1, context=64))


def brute(scorer: Scorer, ids: list[int], count: int) -> float:
    """Token by token."""
    session, total = scorer.engine.new_session(), 0.0
    for at in range(len(ids) - 1):
        x = session.append([ids[at]]).astype(np.float64)
        if at + 1 >= len(ids) - count:
            total += x[ids[at + 1]] - x.max() - math.log(np.exp(x - x.max()).sum())
    return total


def test_continuation_is_scored_token_by_token(scorer: Scorer) -> None:
    context, text = "Oslo is", " in Norway."
    head, tail = scorer.encode(context), scorer.encode(text)
    found, greedy = scorer.continuation(context, text)
    assert found == pytest.approx(brute(scorer, head + tail, len(tail)), rel=1e-4)
    assert not greedy or found > -len(tail)


def test_likely_continuation_is_greedy_and_beats_another(scorer: Scorer) -> None:
    context = "<|im_start|>user\nWhich country is Oslo in?<|im_end|>\n<|im_start|>assistant\n"
    context += "<think>\n\n</think>\n\n"
    right, greedy = scorer.continuation(context, "Oslo is in Norway.")
    wrong, surprising = scorer.continuation(context, "Oslo is in Japan.")
    assert (greedy, surprising) == (True, False)
    assert right > wrong + 5


def test_space_at_the_contexts_end_belongs_to_the_text(scorer: Scorer) -> None:
    assert scorer.continuation("Oslo is ", "in") == scorer.continuation("Oslo is", " in")


def test_text_without_context_follows_the_end_of_a_document(scorer: Scorer) -> None:
    found, _ = scorer.continuation("", "Oslo is")
    ids = [scorer.prefix, *scorer.encode("Oslo is")]
    assert found == pytest.approx(brute(scorer, ids, len(ids) - 1), rel=1e-4)
    assert scorer.engine.tokenizer.decode([scorer.prefix]) == "<|endoftext|>"


def test_rolling_predicts_every_token_once_with_all_context_that_fits(scorer: Scorer) -> None:
    text = "On Monday Ada travelled to Oslo. There Ada found a red lamp. " * 6
    ids, size = scorer.encode(text), scorer.engine.context
    assert size < len(ids) < 3 * size
    wanted, at = 0.0, 0
    while at < len(ids):
        part = ids[at : at + size - 1]
        before = ids[max(0, at + len(part) - size) : at] or [scorer.prefix]
        wanted += brute(scorer, before + part, len(part))
        at += len(part)
    assert scorer.rolling(text) == pytest.approx(wanted, rel=1e-4)
    short = "Ada went home."
    assert scorer.rolling(short) == scorer.continuation("", short)[0]
    assert scorer.rolling("") == 0


def test_context_that_does_not_fit_loses_its_beginning(scorer: Scorer) -> None:
    long = "nothing of this matters at all. " * 20
    found, _ = scorer.continuation(long + "Oslo is", " in Norway.")
    ids = scorer.encode(long + "Oslo is in Norway.")[-scorer.engine.context :]
    assert found == pytest.approx(brute(scorer, ids, len(scorer.encode(" in Norway."))), rel=1e-4)
    with pytest.raises(UsageError, match="does not fit"):
        scorer.continuation("x", long)


def test_generation_ends_before_the_first_stop_text(scorer: Scorer) -> None:
    prompt = "<|im_start|>user\nWhich country is Oslo in?<|im_end|>\n<|im_start|>assistant\n"
    prompt += "<think>\n\n</think>\n\n"
    assert scorer.until(prompt, [], 20) == "Oslo is in Norway."
    assert scorer.until(prompt, [" in", "way"], 20) == "Oslo is"
    assert scorer.until(prompt, [], 1) == "O" or len(scorer.until(prompt, [], 1)) < 6
    with pytest.raises(UsageError, match="does not fit"):
        scorer.until(prompt, [], 64)


def test_settings_of_a_task_are_understood_or_refused() -> None:
    assert _generation("c", {"until": "\n", "max_gen_toks": 7}) == ("c", ["\n"], 7)
    assert _generation("c", {"until": ["", "a"]})[1] == ["a"]
    assert _generation("c", {"do_sample": True, "temperature": 0.0})[0] == "c"
    with pytest.raises(UsageError, match="greedily"):
        _generation("c", {"do_sample": True, "temperature": 0.7})


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{prompt}"
"""
PROMPT = (
    "<|im_start|>user\\nWhich country is {{city}} in?<|im_end|>\\n"
    "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n"
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "cities.jsonl"
    rows = [("Oslo", "Norway", 0), ("Lima", "Peru", 1), ("Cairo", "Egypt", 0), ("Rome", "Peru", 1)]
    data.write_text(
        "".join(
            json.dumps({"city": c, "answer": f"{c} is in {a}.",
                        "choices": [f"{c} is in {a}.", f"{c} is in Egypt."][:: 1 - 2 * gold],
                        "gold": gold}) + "\n"
            for c, a, gold in rows
        )
    )  # fmt: skip
    metric = "metric_list: [{{metric: {0}, aggregation: {1}, higher_is_better: true}}]\n"
    generate = 'doc_to_target: "{{answer}}"\ngeneration_kwargs: {until: ["<|im_end|>"]}\n'
    choose = 'doc_to_target: gold\ndoc_to_choice: choices\ntarget_delimiter: ""\n'
    rolling = 'doc_to_target: "{{answer}}"\n'
    for name, kind, more in (
        ("cities_said", "generate_until", generate + metric.format("exact_match", "mean")),
        ("cities_chosen", "multiple_choice", choose + metric.format("acc", "mean")),
        ("cities_rolled", "loglikelihood_rolling",
         rolling + metric.format("word_perplexity", "weighted_perplexity")),
    ):  # fmt: skip
        prompt = "" if kind == "loglikelihood_rolling" else PROMPT
        text = TASK.format(name=name, data=data, kind=kind, prompt=prompt) + more
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def test_local_tasks_are_evaluated_without_a_network(demo_store: DemoStore, tasks: Path) -> None:
    if find_spec("lm_eval") is None:
        pytest.skip("lm_eval is not installed")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tasks / "cache"),
        "HF_HOME": str(tasks / "home"),
    }
    command = [sys.executable, "-m", "headgate", "eval", str(demo_store()), "--json", "--tasks",
               "cities_said,cities_chosen,cities_rolled", "--task-folder", str(tasks)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["tasks"]
    assert found["cities_said"]["n"] == 4
    assert found["cities_said"]["figures"]["exact_match"] == 0.75  # Rome is not in Peru
    assert found["cities_chosen"]["figures"]["acc"] == 0.75
    assert 1 < found["cities_rolled"]["figures"]["word_perplexity"] < 1e9


class Manager:
    """Knows tasks as lm_eval's does, whose own take ten seconds to read."""

    def __init__(self, include_path: str | None, include_defaults: bool = True) -> None:
        own = ["mine"] if include_path else []
        self.all_tasks = [*own, *(["hellaswag"] if include_defaults else [])]
        self.include_defaults = include_defaults


def test_own_tasks_are_found_and_unknown_ones_refused(tmp_path: Path) -> None:
    lm = SimpleNamespace(tasks=SimpleNamespace(TaskManager=Manager))
    assert not _manager(lm, ["mine"], tmp_path).include_defaults
    assert _manager(lm, ["mine", "hellaswag"], tmp_path).include_defaults
    with pytest.raises(UsageError, match="knows no task 'mine'"):
        _manager(lm, ["mine"], None)
    with pytest.raises(UsageError, match="no folder of task files"):
        _manager(lm, ["mine"], tmp_path / "none")


def test_missing_harness_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="pip install lm_eval"):
        run_tasks(tmp_path, {}, ["x"])
