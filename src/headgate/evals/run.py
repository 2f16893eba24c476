"""Asking all questions of a suite, and adding up."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from headgate.errors import UsageError
from headgate.evals.failures import Failure
from headgate.evals.intervals import wilson
from headgate.evals.suites import Suite
from headgate.evals.suites.items import Item
from headgate.evals.target import MAX_TOKENS, Answer, DoesNotFit, NoAnswer, Target

#: Wrong answers kept of each kind and failure class.
EXAMPLES = 3
#: Called with the number of answers so far and of all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one prompt.

    Attributes:
        right: None if there is no answer to judge.
        failure: class of a wrong answer; ``error`` if the target failed, ``skipped`` if
            the prompt does not fit its context.
        said: the answer as text.
        also: further figures, see :class:`headgate.evals.failures.Verdict`.
    """

    id: str
    kind: str
    right: bool | None
    failure: str = ""
    why: str = ""
    said: str = ""
    also: dict[str, bool] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run_suite(
    suite: Suite,
    target: Target,
    items: Sequence[Item],
    mode: str = "free",
    *,
    batch: int = 1,
    shuffle: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Progress = lambda *_: None,
) -> list[Outcome]:
    """Ask everything, ``batch`` questions at a time.

    Args:
        mode: one of the suite's.
        shuffle: seed for another order of asking; it changes no answer.

    Returns:
        outcomes in the order of ``items``.

    Raises:
        UsageError: the suite or the target does not know the mode.
    """
    if mode not in suite.modes:
        raise UsageError(f"suite {suite.name} is not asked {mode}")
    if mode == "constrained" and not target.constrains:
        raise UsageError(f"{target.name} cannot hold answers to a grammar")
    order = list(range(len(items)))
    if shuffle is not None:
        random.Random(shuffle).shuffle(order)
    found: dict[int, Outcome] = {}

    def ask(at: int) -> None:
        found[at] = _ask(suite, target, items[at], mode, max_tokens)
        progress(len(found), len(items))

    if batch <= 1:
        for at in order:
            ask(at)
    else:
        with ThreadPoolExecutor(batch) as pool:
            for done in [pool.submit(ask, at) for at in order]:
                done.result()
    return [found[at] for at in range(len(items))]


def _ask(suite: Suite, target: Target, item: Item, mode: str, max_tokens: int) -> Outcome:
    try:
        answer = target.answer(suite.question(item, mode, max_tokens))
    except NoAnswer as error:
        return Outcome(item.id, item.kind, None, "error", str(error))
    except DoesNotFit as error:
        return Outcome(item.id, item.kind, None, "skipped", str(error))
    verdict = suite.score(item, answer)
    failure = "" if verdict.failure is None else verdict.failure.value
    return Outcome(
        item.id, item.kind, verdict.right, failure, verdict.why, _said(answer), verdict.also
    )


def _said(answer: Answer) -> str:
    """An answer in one text."""
    calls = [f"{call.name}({call.arguments!r})" for call in answer.calls]
    thought = [f"[{answer.reasoning}]"] if answer.reasoning else []
    return " ".join([*thought, answer.text, *calls, *answer.broken]).strip()


# -- adding up


def summary(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """``{n, score, interval, failures, errors, skipped}`` and one entry more for each
    further figure. Errors and skipped prompts are not among the ``n``."""
    outcomes = list(outcomes)
    judged = [o for o in outcomes if o.right is not None]
    right = sum(bool(o.right) for o in judged)
    found: dict[str, Any] = {
        **_share(right, len(judged)),
        "failures": _failures(judged),
        "errors": sum(o.failure == "error" for o in outcomes),
        "skipped": sum(o.failure == "skipped" for o in outcomes),
    }
    for name in sorted({name for o in judged for name in o.also}):
        having = [o.also[name] for o in judged if name in o.also]
        found[name] = _share(sum(having), len(having))
    return found


def _share(right: int, n: int) -> dict[str, Any]:
    return {"n": n, "score": right / n if n else None, "interval": list(wilson(right, n))}


def _failures(judged: Iterable[Outcome]) -> dict[str, int]:
    counts = Counter(o.failure for o in judged if not o.right)
    return {f.value: counts[f.value] for f in Failure if counts[f.value]}


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Figures of all prompts and of each kind, and examples of wrong answers."""
    kinds: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        kinds.setdefault(outcome.kind, []).append(outcome)
    return {
        "all": summary(outcomes),
        "kinds": {kind: summary(mine) for kind, mine in kinds.items()},
        "examples": _examples(outcomes),
    }


def _examples(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for outcome in outcomes:
        key = outcome.kind, outcome.failure
        counts[key] += 1
        if not outcome.right and outcome.failure != "skipped" and counts[key] <= EXAMPLES:
            found.append({k: v for k, v in outcome.to_dict().items() if k not in ("right", "also")})
    return found
