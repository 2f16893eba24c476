"""A request of the Responses API in the assistant's terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headgate.assistant import (
    Assistant,
    ChatRequest,
    JsonObject,
    JsonSchema,
    NamedTool,
)
from headgate.server.errors import ApiError
from headgate.server.openai_common import thinking_of
from headgate.server.openai_fields import ObjectFormat
from headgate.server.responses_fields import (
    AllowedChoice,
    FunctionTool,
    JsonSchemaFormat,
    NamedChoice,
    ResponsesBody,
)
from headgate.server.responses_store import ResponseStore

LOGPROBS = "message.output_text.logprobs"
#: What ``include`` may ask for; the second has nothing to include.
INCLUDABLE = (LOGPROBS, "reasoning.encrypted_content")


def own_items(body: ResponsesBody, store: ResponseStore) -> list[dict[str, Any]]:
    """The request's items as plain objects, references resolved."""
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    items = [item.model_dump(exclude_none=True) for item in body.input]
    return [store.item(i["id"]) if i["type"] == "item_reference" else i for i in items]


def responses_request(
    body: ResponsesBody, items: list[dict[str, Any]], assistant: Assistant
) -> ChatRequest:
    """The assistant's request for a conversation of ``items``."""
    for name in body.include or ():
        if name not in INCLUDABLE:
            raise ApiError(400, f"{name[:100]!r} cannot be included", "include")
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    tools = [_tool(tool) for tool in body.tools or ()]
    choice: Any = body.tool_choice or "auto"
    if isinstance(body.tool_choice, NamedChoice):
        choice = NamedTool(body.tool_choice.name)
    elif isinstance(body.tool_choice, AllowedChoice):
        allowed = {entry.get("name") for entry in body.tool_choice.tools}
        tools = [tool for tool in tools if tool["function"]["name"] in allowed]
        choice = body.tool_choice.mode
    thinking, variables = thinking_of(body.reasoning.effort if body.reasoning else None)
    given = {
        name: getattr(body, name)
        for name in ("temperature", "top_p")
        if getattr(body, name) is not None
    }
    return ChatRequest(
        messages=[*system, *messages_of(items)],
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        strict_tools=frozenset(tool.name for tool in body.tools or () if tool.strict),
        response_format=_format(body),
        sampling=replace(assistant.default_sampling, **given),
        max_tokens=body.max_output_tokens,
        thinking=thinking,
        top_logprobs=(body.top_logprobs or 0) if wants_logprobs(body) else None,
        template_variables=variables,
    )


def wants_logprobs(body: ResponsesBody) -> bool:
    return body.top_logprobs is not None or LOGPROBS in (body.include or ())


def _tool(tool: FunctionTool) -> dict[str, Any]:
    fields = tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True)
    return {"type": "function", "function": fields}


def _format(body: ResponsesBody) -> JsonObject | JsonSchema | None:
    form = body.text.format if body.text else None
    if isinstance(form, ObjectFormat):
        return JsonObject()
    return JsonSchema(form.schema_) if isinstance(form, JsonSchemaFormat) else None


def messages_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as messages. Reasoning, text and calls that the model gave in one turn are
    items of their own and become one message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call_output":
            text = _text(item["output"])
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": text})
        elif kind == "message" and item["role"] != "assistant":
            messages.append({"role": item["role"], "content": _text(item["content"])})
        else:
            _add_to_turn(messages, kind, item)
    return messages


def _add_to_turn(messages: list[dict[str, Any]], kind: str, item: dict[str, Any]) -> None:
    """Add a piece of the model's turn to its message, or begin one."""
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    begun = last is not None and kind == "reasoning"
    if last is None or begun or (kind == "message" and (last["content"] or "tool_calls" in last)):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    if kind == "message":
        last["content"] = _text(item["content"])
    elif kind == "reasoning":
        last["reasoning_content"] = _text(item.get("content") or item.get("summary") or "")
    else:
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        last.setdefault("tool_calls", []).append(call)


def _text(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)
