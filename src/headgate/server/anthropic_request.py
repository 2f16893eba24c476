"""A request of Anthropic's API in the assistant's terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headgate.assistant import Assistant, ChatRequest, JsonSchema, NamedTool
from headgate.server.anthropic_fields import (
    AutoChoice,
    Block,
    MessageField,
    MessagesBody,
    PromptBody,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolField,
    ToolResultBlock,
    ToolUseBlock,
)
from headgate.server.errors import ApiError

#: Between text blocks of one message, which are paragraphs of their own.
BETWEEN = "\n\n"


def prompt_request(body: PromptBody) -> ChatRequest:
    """What decides the prompt."""
    choice: Any = "auto"
    parallel = True
    if isinstance(body.tool_choice, (AutoChoice, ToolChoice)):
        parallel = not body.tool_choice.disable_parallel_tool_use
    if isinstance(body.tool_choice, ToolChoice):
        choice = NamedTool(body.tool_choice.name)
    elif body.tool_choice is not None:
        choice = "required" if body.tool_choice.type == "any" else body.tool_choice.type
    thinking, variables = _thinking(body)
    form = body.output_format or (body.output_config.format if body.output_config else None)
    system = _joined(body.system)
    return ChatRequest(
        messages=[
            *([{"role": "system", "content": system}] if system else []),
            *(plain for message in body.messages for plain in _messages(message)),
        ],
        tools=[_tool(tool) for tool in body.tools or ()],
        tool_choice=choice,
        parallel_tool_calls=parallel,
        strict_tools=frozenset(tool.name for tool in body.tools or () if tool.strict),
        response_format=JsonSchema(form.schema_) if form else None,
        thinking=thinking,
        thinking_budget=body.thinking.budget_tokens if body.thinking and thinking else None,
        template_variables=variables,
    )


def messages_request(body: MessagesBody, assistant: Assistant) -> ChatRequest:
    """The whole request."""
    given = {
        name: getattr(body, name)
        for name in ("temperature", "top_p", "top_k")
        if getattr(body, name) is not None
    }
    return replace(
        prompt_request(body),
        sampling=replace(assistant.default_sampling, **given),
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
    )


def _thinking(body: PromptBody) -> tuple[bool | None, dict[str, Any]]:
    variables = {}
    if body.output_config is not None and body.output_config.effort is not None:
        variables["reasoning_effort"] = body.output_config.effort
    if body.thinking is None:
        # Anthropic's models think only when asked to.
        return False, variables
    if body.thinking.type == "enabled" and body.thinking.budget_tokens is None:
        raise ApiError(400, "thinking.budget_tokens: Field required", "thinking.budget_tokens")
    return body.thinking.type != "disabled", variables


def _joined(content: str | list[TextBlock] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return BETWEEN.join(block.text for block in content)


def _tool(tool: ToolField) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": {**function, "parameters": tool.input_schema}}


def _messages(message: MessageField) -> list[dict[str, Any]]:
    """A message as one or several: results of tools have messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    blocks = message.content
    text = BETWEEN.join(block.text for block in blocks if isinstance(block, TextBlock))
    if message.role != "assistant":
        _only(message.role, blocks, (TextBlock, ToolResultBlock))
        results = [_result(block) for block in blocks if isinstance(block, ToolResultBlock)]
        return (
            [*results, {"role": message.role, "content": text}] if text or not results else results
        )
    _only(message.role, blocks, (TextBlock, ThinkingBlock, ToolUseBlock))
    out: dict[str, Any] = {"role": "assistant", "content": text}
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    if thoughts:
        out["reasoning_content"] = BETWEEN.join(thoughts)
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": block.input},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return [{**out, "tool_calls": calls} if calls else out]


def _only(role: str, blocks: list[Block], kinds: tuple[type, ...]) -> None:
    for block in blocks:
        if not isinstance(block, kinds):
            raise ApiError(400, f"a {block.type} block cannot be in a message of role {role}")


def _result(block: ToolResultBlock) -> dict[str, Any]:
    text = _joined(block.content)
    if block.is_error:
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
