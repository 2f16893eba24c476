"""Long context: one fact to recall among many, at several depths of the prompt.

``64 facts, 25% deep`` is a prompt of 64 sentences "A lives in B.", with a quarter of them
before the one that is asked for at the end. A fact is about ten tokens of the demo's
tokenizer. Each line has ``mentions``: what has to occur in the answer.

Prompts that do not fit the target's context are counted as skipped.
"""

from __future__ import annotations

from headgate.evals.failures import Verdict
from headgate.evals.score import score_words
from headgate.evals.suites.items import Item
from headgate.evals.target import Answer, Question


def check(item: Item) -> None:
    """Raise ValueError unless the item says what has to be mentioned."""
    mentions = item.data.get("mentions")
    if not isinstance(mentions, list) or not mentions:
        raise ValueError("no mentions")
    if not all(isinstance(text, str) for text in mentions):
        raise ValueError("mentions are not strings")


def ask(item: Item, constrained: bool) -> Question:
    """The question. There is no grammar to hold the answer to."""
    assert not constrained
    return Question(item.messages, thinking=item.thinking)


def score(item: Item, answer: Answer) -> Verdict:
    """Right if the fact is in the answer."""
    return score_words(answer, item.data["mentions"])
