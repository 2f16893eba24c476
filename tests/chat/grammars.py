"""The demo's tokenizer in three forms, tools, and whether a grammar takes a text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headgate.chat import Constraint, Grammar, Tokenizer, Vocabulary
from headgate.demo import CHECKPOINT
from headgate.errors import UsageError

SIZE, STOPS = 4200, [2, 0]
RAW = json.loads((CHECKPOINT / "tokenizer.json").read_bytes())
MARKS = ("tool_call>", "tool_response>", "think>")


def flavour(kind: str) -> bytes:
    """The demo's tokenizer with its tags as special tokens, added tokens or plain text."""
    raw: dict[str, Any] = json.loads(json.dumps(RAW))
    mine = [t for t in raw["added_tokens"] if t["content"].endswith(MARKS)]
    for token in mine:
        if kind == "added":
            token["special"] = False
        elif kind == "plain":
            raw["added_tokens"].remove(token)
            raw["model"]["vocab"][f"unused{token['id']}"] = raw["model"]["vocab"].pop(
                token["content"]
            )
    return json.dumps(raw).encode()


class Setting:
    def __init__(self, kind: str) -> None:
        data = flavour(kind)
        self.kind = kind
        self.tokenizer = Tokenizer.from_bytes(data)
        self.vocabulary = Vocabulary(data, SIZE, STOPS)

    def refused_at(self, grammar: Grammar, text: str, after: int | None = None) -> str | None:
        """The text from the first token that is not allowed, "" if it may not end, None if
        all of it is allowed."""
        constraint = Constraint(self.vocabulary, grammar, after=after)
        ids = self.tokenizer.encode(text)
        for at, token in enumerate(ids):
            mask, forced = constraint.mask(), constraint.forced()
            if mask is not None:
                assert mask.shape == (SIZE,) and not mask[len(RAW["model"]["vocab"]) :].any()
                assert all(mask[first] for first in forced[:1])
                if not mask[token]:
                    with pytest.raises(UsageError, match="not allowed"):
                        constraint.accept(token)
                    return self.tokenizer.decode(ids[at:])
            constraint.accept(token)
        mask = constraint.mask()
        return None if mask is None or mask[STOPS].all() else ""


SPECIAL = Setting("special")
SETTINGS = [SPECIAL, Setting("added"), Setting("plain")]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.kind)


def tool(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool(
    "weather",
    ("city",),
    city={"type": "string"},
    days={"type": "integer", "minimum": 1},
    unit={"type": "string", "enum": ["C", "F"]},
)
NOW = tool("now")


def call(name: str, **values: str) -> str:
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"
