"""Tool calls: the right functions, with the right arguments, of the right types.

| kind | asks for |
|---|---|
| single, parallel | one call with one tool on offer; two or three calls in one turn |
| choose among few, among many, look-alikes | one of two to four tools, of eight, of four that share a word of their names |
| after a result | a call after results of earlier ones: a correction, a value passed on |
| result to report, error to report | words that name what a tool has returned |
| irrelevant | words, for no tool fits |
| schema depth 1 to 5 | objects nested so deep; 1 is a scalar |
| hostile, ... | strings with quotes, backslashes, newlines, braces, other scripts, digits |
| thinking | calls and refusals after reasoning |

Each line has ``tools``, ``messages`` and ``calls``, and where words are wanted perhaps
``mentions``, which have to occur in them. Held to a grammar, functions are ``strict``:
the model is free to call or not, but a call follows its schema.
"""  # noqa: E501

from __future__ import annotations

from headgate.chat import ToolCall
from headgate.evals.failures import Verdict
from headgate.evals.score import score_calls, score_words
from headgate.evals.suites.items import Item
from headgate.evals.target import Answer, Question


def check(item: Item) -> None:
    """Raise ValueError unless the item has tools and calls."""
    for tool in item.tools:
        if not isinstance(tool["function"]["name"], str):
            raise ValueError("a tool without a name")
    calls = item.data.get("calls")
    if not isinstance(calls, list):
        raise ValueError("no calls")
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError("a call without a name")
        if not isinstance(call.get("arguments"), dict):
            raise ValueError(f"arguments of {call['name']} are not an object")
    mentions = item.data.get("mentions", [])
    if not isinstance(mentions, list) or not all(isinstance(m, str) for m in mentions):
        raise ValueError("mentions are not a list of strings")


def ask(item: Item, constrained: bool) -> Question:
    """The question; ``constrained`` makes all functions strict."""
    return Question(item.messages, item.tools, strict=constrained, thinking=item.thinking)


def score(item: Item, answer: Answer) -> Verdict:
    """Calls by their syntax trees, words by what they have to mention."""
    wanted = [ToolCall(call["name"], call["arguments"]) for call in item.data["calls"]]
    if wanted:
        return score_calls(answer, wanted, item.tools)
    return score_words(answer, item.data.get("mentions", ()))
