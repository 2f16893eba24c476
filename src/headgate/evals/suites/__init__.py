"""The suites: what is asked, and when an answer is right.

Prompts lie in ``data/*.jsonl``, one JSON object in each line. They are made by
``demo/suites.py`` of the project's source, so that the demo model can answer them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from headgate.errors import UsageError
from headgate.evals.failures import Verdict
from headgate.evals.suites import recall, schema, tools
from headgate.evals.suites.items import Item
from headgate.evals.target import Answer, Question


@dataclass(frozen=True)
class Suite:
    """Questions of one sort.

    Attributes:
        check: raises ValueError unless an item has what the suite needs.
        ask: the question of an item, free or (True) held to a grammar.
        score: what became of the answer.
        modes: in which ways it can be asked.
    """

    name: str
    check: Callable[[Item], None]
    ask: Callable[[Item, bool], Question]
    score: Callable[[Item, Answer], Verdict]
    modes: tuple[str, ...] = ("free", "constrained")

    def question(self, item: Item, mode: str, max_tokens: int) -> Question:
        """The question in one of the suite's modes."""
        return replace(self.ask(item, mode == "constrained"), max_tokens=max_tokens)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("tools", tools.check, tools.ask, tools.score),
        Suite("schema", schema.check, schema.ask, schema.score),
        Suite("recall", recall.check, recall.ask, recall.score, ("free",)),
    )
}


def find_suite(name: str) -> Suite:
    """A suite by name.

    Raises:
        UsageError: there is none.
    """
    try:
        return SUITES[name]
    except KeyError:
        raise UsageError(f"there is no suite {name!r}; there are {', '.join(SUITES)}") from None
