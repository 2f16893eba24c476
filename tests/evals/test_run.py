"""Suites on the demo engine: the order of asking changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from headgate.engine import Engine
from headgate.errors import UsageError
from headgate.evals.engine_target import EngineTarget, engine_target
from headgate.evals.run import EXAMPLES, Outcome, run_suite, summarize, summary
from headgate.evals.suites import SUITES, find_suite
from headgate.evals.suites.items import Item, load_items, some, suite_file
from headgate.evals.target import DoesNotFit, Question
from tests.conftest import DemoStore


@pytest.fixture(scope="module")
def target(demo_store: DemoStore) -> Iterator[EngineTarget]:
    engine = Engine.load(demo_store(), threads=1, sequences=4)
    with engine_target(engine, 4) as found:
        yield found


def prompts(suite: str, *kinds: str) -> list[Item]:
    items = load_items(suite_file(suite))
    return some([i for i in items if not kinds or i.kind in kinds], 2)


def test_demo_answers_its_suites(target: EngineTarget) -> None:
    found = run_suite(SUITES["tools"], target, prompts("tools", "single", "irrelevant", "thinking"))
    assert [o.why for o in found if not o.right] == []
    found = run_suite(SUITES["recall"], target, prompts("recall", "16 facts, 25% deep"))
    assert summary(found)["score"] == 1


@pytest.mark.parametrize("mode", ["free", "constrained"])
def test_order_and_batch_size_change_no_outcome(target: EngineTarget, mode: str) -> None:
    items = prompts("tools", "parallel", "schema depth 4", "irrelevant")
    one_by_one = run_suite(SUITES["tools"], target, items, mode)
    together = run_suite(SUITES["tools"], target, items, mode, batch=4, shuffle=7)
    assert one_by_one == together
    if mode == "free":  # held to the grammar, the model gets all of them right
        assert {o.right for o in one_by_one} == {True, False}  # or it would show little


def test_grammar_makes_every_document_valid(target: EngineTarget) -> None:
    items = prompts("schema", "$ref", "pattern", "anyOf")
    found = summary(run_suite(SUITES["schema"], target, items, "constrained", batch=4))
    assert found["score"] == 1
    assert found["equal"]["n"] == found["n"] == len(items)


def test_prompt_beyond_the_context_is_skipped(demo_store: DemoStore) -> None:
    engine = Engine.load(demo_store(), threads=1, context=256)
    with engine_target(engine) as small:
        with pytest.raises(DoesNotFit):
            small.answer(Question([{"role": "user", "content": "word " * 300}], max_tokens=8))
        items = prompts("recall", "64 facts, 0% deep")
        found = run_suite(SUITES["recall"], small, items, max_tokens=16)
    assert {o.failure for o in found} == {"skipped"}
    assert summary(found)["n"] == 0


def test_suite_refuses_a_mode_that_it_has_not(target: EngineTarget) -> None:
    with pytest.raises(UsageError, match="recall is not asked constrained"):
        run_suite(SUITES["recall"], target, prompts("recall")[:1], "constrained")
    with pytest.raises(UsageError, match="there is no suite 'chess'"):
        find_suite("chess")


def test_limit_of_tokens_ends_an_answer(target: EngineTarget) -> None:
    found = run_suite(SUITES["tools"], target, prompts("tools", "single"), max_tokens=3)
    assert {o.failure for o in found} == {"too long"}


def outcome(number: int, failure: str = "", kind: str = "k") -> Outcome:
    right = None if failure in ("error", "skipped") else not failure
    return Outcome(str(number), kind, right, failure, also={"equal": right is True})


def test_figures_add_up() -> None:
    outcomes = [outcome(1), outcome(2, "refusal"), outcome(3, "error"), outcome(4, "skipped")]
    outcomes += [outcome(5, "wrong type", "other")]
    found = summarize(outcomes)
    assert found["all"]["n"] == 3
    assert found["all"]["failures"] == {"refusal": 1, "wrong type": 1}
    assert (found["all"]["errors"], found["all"]["skipped"]) == (1, 1)
    assert found["all"]["equal"]["n"] == 3
    low, high = found["all"]["interval"]
    assert low < 1 / 3 < high
    assert found["kinds"]["other"]["score"] == 0


def test_some_examples_of_each_class_are_kept_with_what_was_said() -> None:
    outcomes = [outcome(i, "refusal") for i in range(10)] + [outcome(11, "error"), outcome(12)]
    examples = summarize(outcomes)["examples"]
    assert [e["failure"] for e in examples] == ["refusal"] * EXAMPLES + ["error"]
    assert {"id", "kind", "why", "said"} <= set(examples[0])
