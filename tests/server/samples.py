"""Requests that the demo model is known to answer well."""

from __future__ import annotations

import json
from typing import Any

QUESTION = "Which country is Oslo in?"
ANSWER = "Oslo is in Norway."
ASK: list[Any] = [{"role": "user", "content": QUESTION}]

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city"}},
    "required": ["city"],
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather forecast",
        "parameters": WEATHER_SCHEMA,
    },
}
MAIL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "send_mail",
        "description": "Send an email",
        "parameters": {
            "type": "object",
            "properties": {
                "to": {"type": "string"},
                "urgent": {"type": "boolean"},
            },
            "required": ["to", "urgent"],
        },
    },
}
#: A result that the model can report.
RESULT = '{"ok": true, "id": "A17"}'
REPORT = "Done. The reference is A17."

PARIS = "Please get the weather forecast in Paris."
ASK_PARIS: list[Any] = [{"role": "user", "content": PARIS}]

#: The demo's stop tokens: with these, an answer goes on to its limit.
ENDLESS = {"0": -100, "2": -100}

TWO_CITIES = "Please get the weather forecast in Paris and then get the weather forecast in Madrid."
ASK_BOTH: list[Any] = [{"role": "user", "content": TWO_CITIES}]

CITY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["name", "population"],
}


def ask_json(facts: str) -> list[Any]:
    text = f"Write a JSON object that follows this schema: {json.dumps(CITY_SCHEMA)}\n"
    return [{"role": "user", "content": f"{text}The facts: {facts}"}]


#: The keys as the schema has them, and in an order that the model follows by itself.
ASK_JSON = ask_json("name `Oslo`; population is 700")
ASK_JSON_FREE = ask_json("population is 700; name `Oslo`")
