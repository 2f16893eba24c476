"""The embedded model, held to grammars: every answer validates."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest

from headgate import Engine
from headgate.chat import (
    ChatTemplate,
    Constraint,
    Grammar,
    OutputParser,
    Vocabulary,
    opens_thinking,
)
from headgate.chat.output import CallEnd
from tests.conftest import DemoStore

LIMIT = 160


@pytest.fixture(scope="module")
def engine(demo_store: DemoStore) -> Engine:
    return Engine.load(demo_store(16, 16), context=2048)


@pytest.fixture(scope="module")
def vocabulary(engine: Engine) -> Vocabulary:
    data = engine.store.read_file("tokenizer.json")
    return Vocabulary(data, engine.config.vocab_size, engine.stop_ids)


def answer(
    engine: Engine,
    constraint: Constraint,
    question: str,
    tools: list[dict[str, Any]] | None = None,
    temperature: float = 0.0,
) -> str:
    """The model's likeliest answer that the constraint allows; forced tokens in one chunk."""
    template = ChatTemplate.from_files(
        {"chat_template.jinja": engine.store.read_file("chat_template.jinja")}
    )
    assert template is not None
    prompt = template.render([{"role": "user", "content": question}], tools)
    assert not opens_thinking(prompt)
    session, noise = engine.new_session(), np.random.default_rng(0)
    logits = session.append(engine.tokenizer.encode(prompt))
    ids: list[int] = []
    while not constraint.finished and len(ids) < LIMIT:
        chunk = constraint.forced()
        if not chunk:
            mask = constraint.mask()
            scores = logits + temperature * noise.gumbel(size=logits.shape)
            if mask is not None:
                scores = np.where(mask, scores, -np.inf)
            chunk = [int(np.argmax(np.where(engine.allowed_tokens, scores, -np.inf)))]
            if chunk[0] in engine.stop_ids:
                break
        for token in chunk:
            constraint.accept(token)
        ids += chunk
        logits = session.append(chunk)
    assert len(ids) < LIMIT
    return engine.tokenizer.decode(ids)


FLAT = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 2},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]{1,8}$"}]},
    },
    "required": ["items", "note"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {
                "id": {"type": "integer", "minimum": 0, "maximum": 99},
                "ok": {"type": "boolean"},
            },
            "required": ["id", "ok"],
            "additionalProperties": False,
        }
    },
}
LIST = {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3, "minItems": 2}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("schema", [FLAT, NESTED, LIST], ids=["flat", "nested", "list"])
def test_json_answers_validate(
    engine: Engine, vocabulary: Vocabulary, schema: dict[str, Any], temperature: float
) -> None:
    constraint = Constraint(vocabulary, Grammar.json_schema(schema))
    text = answer(engine, constraint, "Weather in Oslo?", temperature=temperature)
    jsonschema.validate(json.loads(text), schema)


PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 16},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "where": {
            "type": "object",
            "properties": {"lat": {"type": "integer", "maximum": 90, "minimum": -90}},
            "required": ["lat"],
            "additionalProperties": False,
        },
    },
    "required": ["city", "unit", "where"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
@pytest.mark.parametrize("choice", ["required", "get_weather"])
@pytest.mark.parametrize("question", ["What is the weather in Oslo?", "Tell me a story."])
def test_required_calls_validate(
    engine: Engine, vocabulary: Vocabulary, choice: str, question: str, temperature: float
) -> None:
    constraint = Constraint(vocabulary, Grammar.tool_calls(TOOLS, choice=choice, parallel=False))
    text = answer(engine, constraint, question, TOOLS, temperature)
    parser = OutputParser(TOOLS)
    events = parser.push(text) + parser.finish()
    (call,) = (event.call for event in events if isinstance(event, CallEnd))
    if choice == "get_weather" or call.name == "get_weather":
        assert call.name == "get_weather"
        jsonschema.validate(call.arguments, PARAMETERS)
    else:
        assert (call.name, call.arguments) == ("now", {})
