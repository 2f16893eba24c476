"""JSON by schema: a schema and facts in the prompt, one JSON document as the answer.

Kinds are families of keywords: types (nullable ones too), enum, const, pattern, ranges
(``minimum``, ``maxLength`` and so on), arrays (``minItems``, ``maxItems``), nesting to
depth 3, anyOf, $ref; ``corpus`` and ``thinking`` are of the demo's held-out set.

Right is what validates (JSON Schema 2020-12). ``equal`` is the share of answers that hold
exactly the facts, which a grammar cannot force. Each line has ``schema`` and ``value``.
"""

from __future__ import annotations

from headgate.evals.failures import Verdict
from headgate.evals.score import schema_error, score_json
from headgate.evals.suites.items import Item
from headgate.evals.target import Answer, Question


def check(item: Item) -> None:
    """Raise ValueError unless the item has a schema that its own value follows."""
    schema = item.data.get("schema")
    if not isinstance(schema, dict):
        raise ValueError("no schema")
    if "value" not in item.data:
        raise ValueError("no value")
    error = schema_error(item.data["value"], schema)
    if error is not None:
        raise ValueError(f"the value does not follow the schema: {error[1]}")


def ask(item: Item, constrained: bool) -> Question:
    """The question; ``constrained`` gives the schema as the response format too."""
    wanted = {"name": "answer", "strict": True, "schema": item.data["schema"]}
    return Question(
        item.messages,
        response_format={"type": "json_schema", "json_schema": wanted} if constrained else None,
        thinking=item.thinking,
    )


def score(item: Item, answer: Answer) -> Verdict:
    """By validation, and beside it by equality."""
    return score_json(answer, item.data["schema"], item.data["value"])
