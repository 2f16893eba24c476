"""What OpenAI's APIs have in common: requests in our terms, and pieces of responses."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from headgate.assistant import (
    Assistant,
    ChatRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
    TokenLogprob,
    Usage,
)
from headgate.chat import ToolCall
from headgate.engine import Sampling
from headgate.server.errors import ApiError
from headgate.server.openai_fields import (
    AllowedChoice,
    ChatBody,
    ChatMessage,
    FunctionTool,
    JsonSchemaFormat,
    NamedChoice,
    ObjectFormat,
    ResponseFormatField,
    SamplingFields,
    Text,
    ToolChoiceField,
)

#: What JSON has for a probability of zero.
LEAST_LOGPROB = -9999.0
#: Efforts that ask for no reasoning.
NO_EFFORT = ("none", "minimal")


def new_id(prefix: str) -> str:
    """An identifier that nobody can guess."""
    return prefix + secrets.token_hex(12)


def check_model(assistant: Assistant, asked: str | None) -> None:
    """One model is served, under one name.

    Raises:
        ApiError: 404, another model was asked for.
    """
    if asked is not None and asked != assistant.name:
        raise ApiError(
            404,
            f"the model {asked[:100]!r} is not served here; {assistant.name!r} is",
            "model",
            "model_not_found",
        )


def sampling_of(body: SamplingFields, assistant: Assistant) -> Sampling:
    """The request's sampling; what it does not say is the model's default."""
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    given = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if body.seed is not None:
        given["seed"] = body.seed % (1 << 63)
    if body.logit_bias:
        given["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
        check_tokens(given["logit_bias"], assistant)
    return replace(
        assistant.default_sampling,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        **given,
    )


def check_tokens(ids: Iterable[int], assistant: Assistant) -> None:
    """Raises:
    ApiError: 400, an id of ``logit_bias`` is no token.
    """
    vocab = assistant.engine.config.vocab_size
    for token in ids:
        if token >= vocab:
            raise ApiError(400, f"token {token} is outside the vocabulary of {vocab}", "logit_bias")


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def chat_request(body: ChatBody, assistant: Assistant) -> ChatRequest:
    """A chat completion's request in the assistant's terms."""
    tools = [plain_tool(tool) for tool in body.tools or ()]
    choice, tools = tool_choice(body.tool_choice, tools)
    wants_logprobs = bool(body.logprobs)
    if body.top_logprobs and not wants_logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    thinking, variables = thinking_of(body.reasoning_effort)
    return ChatRequest(
        messages=[plain_message(message) for message in body.messages],
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        strict_tools=frozenset(t.function.name for t in body.tools or () if t.function.strict),
        response_format=format_of(body.response_format),
        sampling=sampling_of(body, assistant),
        max_tokens=body.max_completion_tokens or body.max_tokens,
        stop=stops_of(body.stop),
        thinking=thinking,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        template_variables={**variables, **(body.chat_template_kwargs or {})},
    )


def thinking_of(effort: str | None) -> tuple[bool | None, dict[str, Any]]:
    """Whether to reason, and the template's variable for how much."""
    if effort is None:
        return None, {}
    return effort not in NO_EFFORT, {"reasoning_effort": effort}


def plain_text(content: Text | None) -> str:
    """The text of a message's content; parts follow one another without a separator, as
    templates print them."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal or "" for part in content)


def plain_message(message: ChatMessage) -> dict[str, Any]:
    """A message as the assistant wants it."""
    out: dict[str, Any] = {"role": message.role, "content": plain_text(message.content)}
    if message.role == "assistant":
        out["content"] = out["content"] or message.refusal or ""
        out["reasoning_content"] = message.reasoning_content or message.reasoning
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls or ()
        ]
    elif message.role == "tool":
        out["tool_call_id"] = message.tool_call_id
    return {name: value for name, value in out.items() if value is not None and value != []}


def plain_tool(tool: FunctionTool) -> dict[str, Any]:
    """A declaration with the fields that templates print, in the client's order."""
    function = {
        name: value
        for name, value in tool.function.model_dump(exclude_unset=True).items()
        if name != "strict" and value is not None
    }
    return {"type": "function", "function": function}


def tool_choice(
    choice: ToolChoiceField | None, tools: list[dict[str, Any]]
) -> tuple[Any, list[dict[str, Any]]]:
    """The choice, and the tools that it leaves."""
    if isinstance(choice, NamedChoice):
        return NamedTool(choice.function.name), tools
    if isinstance(choice, AllowedChoice):
        allowed = {_allowed_name(entry) for entry in choice.allowed_tools.tools}
        left = [tool for tool in tools if tool["function"]["name"] in allowed]
        return choice.allowed_tools.mode, left
    return choice or "auto", tools


def _allowed_name(entry: dict[str, Any]) -> Any:
    function = entry.get("function", entry)
    return function.get("name") if isinstance(function, dict) else None


def format_of(field: ResponseFormatField | None) -> JsonObject | JsonSchema | None:
    if isinstance(field, ObjectFormat):
        return JsonObject()
    if isinstance(field, JsonSchemaFormat):
        if field.json_schema.schema_ is None:
            return JsonObject()
        return JsonSchema(field.json_schema.schema_)
    return None


def arguments_text(call: ToolCall) -> str:
    """A call's arguments as the JSON string that OpenAI's clients expect."""
    return json.dumps(call.arguments, ensure_ascii=False)


def usage_document(usage: Usage) -> dict[str, Any]:
    """Of chat and plain completions."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def total_usage(usages: list[Usage]) -> Usage:
    """Of several answers to one prompt, which is counted once."""
    return Usage(
        usages[0].prompt,
        max(u.cached for u in usages),
        sum(u.completion for u in usages),
        sum(u.reasoning for u in usages),
    )


def clamp(logprob: float | None) -> float:
    """A log probability that JSON can hold."""
    return LEAST_LOGPROB if logprob is None else max(LEAST_LOGPROB, logprob)


def token_bytes(text: str) -> list[int] | None:
    """UTF-8 of a token; None for a piece of a character."""
    return None if "\ufffd" in text else list(text.encode())


def logprob_document(token: TokenLogprob) -> dict[str, Any]:
    """One entry of a chat answer's log probabilities."""

    def entry(text: str, logprob: float | None) -> dict[str, Any]:
        return {"token": text, "logprob": clamp(logprob), "bytes": token_bytes(text)}

    top = [entry(text, logprob) for _, text, logprob in token.top]
    return {**entry(token.text, token.logprob), "top_logprobs": top}
