"""Every field that the official clients can send is honoured or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import BaseModel, ValidationError

from headgate.server.anthropic_fields import MessagesBody, PromptBody
from headgate.server.fields import Refused, locate
from headgate.server.openai_fields import ChatBody, CompletionBody
from headgate.server.responses_fields import ResponsesBody

CLIENTS: list[tuple[type[BaseModel], type]] = [
    (ChatBody, chat_create_params.CompletionCreateParamsBase),
    (CompletionBody, completion_create_params.CompletionCreateParamsBase),
    (ResponsesBody, response_create_params.ResponseCreateParamsBase),
    (MessagesBody, message_create_params.MessageCreateParamsBase),
    (MessagesBody, beta_create_params.MessageCreateParamsBase),
    (PromptBody, message_count_tokens_params.MessageCountTokensParams),
]
MINIMAL: dict[type[BaseModel], dict[str, Any]] = {
    ChatBody: {"messages": [{"role": "user", "content": "x"}]},
    CompletionBody: {"prompt": "x"},
    ResponsesBody: {"input": "x"},
    MessagesBody: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    PromptBody: {"messages": [{"role": "user", "content": "x"}]},
}


@pytest.mark.parametrize(("model", "params"), CLIENTS)
def test_every_field_of_the_sdk_is_declared(model: type[BaseModel], params: type) -> None:
    assert set(params.__annotations__) <= set(model.model_fields)


def test_every_field_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    sections = {part.splitlines()[0]: part for part in text.split("\n### ")[1:]}
    models: dict[str, type[BaseModel]] = {
        "/v1/chat/completions": ChatBody,
        "/v1/completions": CompletionBody,
        "/v1/responses": ResponsesBody,
        "/v1/messages": MessagesBody,
    }
    for heading, model in models.items():
        table = sections[heading]
        assert [name for name in model.model_fields if f"`{name}`" not in table] == []


def refusals() -> list[tuple[type[BaseModel], str, Refused]]:
    found = []
    for model in MINIMAL:
        for name, field in model.model_fields.items():
            marks = [m for m in field.metadata if isinstance(m, Refused)]
            marks += [m for m in get_args(field.annotation) if isinstance(m, Refused)]
            found += [(model, name, mark) for mark in marks]
    assert len(found) > 20
    return found


@pytest.mark.parametrize(("model", "name", "mark"), refusals())
def test_refused_fields_say_so_and_may_be_null(
    model: type[BaseModel], name: str, mark: Refused
) -> None:
    body = MINIMAL[model]
    for harmless in (None, *mark.harmless):
        model.model_validate({**body, name: harmless})
    with pytest.raises(ValidationError) as caught:
        model.model_validate({**body, name: {"anything": "else"}})
    assert locate(list(caught.value.errors()), {**body, name: {}}) == (name, mark.why)


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
         "messages[0].content[0].text"),
        ({**MINIMAL[ChatBody], "stop": [""]}, "stop[0]"),
        ({**MINIMAL[ChatBody], "n": "2"}, "n"),
        ({**MINIMAL[ChatBody], "tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools[0].function.name"),
        ({**MINIMAL[ChatBody], "tool_choice": {"type": "function", "function": {}}},
         "tool_choice.function.name"),
        ({**MINIMAL[ChatBody], "logit_bias": {"x": 1}}, "logit_bias.x"),
        ({**MINIMAL[ChatBody], "unheard_of": 1}, "unheard_of"),
    ],
)  # fmt: skip
def test_errors_name_the_field(body: dict[str, Any], path: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate(body)
    assert locate(list(caught.value.errors()), body)[0] == path
